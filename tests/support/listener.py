"""A TCP server inside a test, on a thread with an event loop of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self


class Listener:
    """Listens on a free port of loopback while entered, and runs `serve` for each connection.

    At the end it stops what still runs. Then it closes all connections, also those that `keep` was given.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()  # an event loop itself keeps only weak references

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def keep(self, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine, so it runs at once. A task may be cancelled before its first step.
        self.keep(writer)
        task = self.loop.create_task(self.serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in self._tasks:  # the others accept connections, and end by themselves
                task.cancel()
            await asyncio.wait(tasks)
        # Not earlier: closed while it accepts a connection, it leaks it. https://github.com/python/cpython/issues/109564
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # in this step the connections close
