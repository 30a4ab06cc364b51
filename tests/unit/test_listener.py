"""The TCP server of the tests: it leaves no connection open. pytest makes an error of each that it leaves."""

import asyncio
import gc
import socket

from tests.support.listener import Listener


class Forever(Listener):
    async def serve(self, reader, writer):
        await asyncio.Event().wait()


def test_a_server_that_ends_while_clients_connect_leaks_no_connection():
    for _ in range(30):
        clients = [socket.socket() for _ in range(3)]
        with Forever() as server:
            for client in clients:
                client.connect(("127.0.0.1", server.port))
        for client in clients:
            client.close()
    gc.collect()
