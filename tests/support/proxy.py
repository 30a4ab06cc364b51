"""A proxy between the server and PostgreSQL. It reads their protocol, and can fail a transaction at a chosen point."""

import asyncio
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from tests.support.listener import Listener

BEFORE_BEGIN = "before BEGIN"
BEFORE_COMMIT = "before COMMIT"
AFTER_COMMIT = "after COMMIT"
BEFORE_RESPONSE = "before the response"
WRITING = frozenset({"write", "write_hold", "end_hold", "write_routing", "write_releases", "store_responses"})
"""The prepared statements that make a transaction one that writes."""
POINTS = (BEFORE_BEGIN, BEFORE_COMMIT, AFTER_COMMIT, BEFORE_RESPONSE)


@dataclass(eq=False)
class ProxiedConnection:
    """One connection through the proxy. Its client is our server, its server is PostgreSQL."""

    client_port: int
    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter
    writes: bool = False
    """Whether the transaction that is under way writes."""
    is_cut: bool = False
    is_silent: bool = False
    """Whether nothing is delivered any more, in either direction."""

    def cut(self) -> None:
        self.is_cut = True
        for writer in (self.to_client, self.to_server):
            writer.transport.abort()


Action = Callable[[ProxiedConnection], Awaitable[None]]


class Proxy(Listener):
    """Listens on a free port while entered. `arm` chooses what it does to the next transaction."""

    def __init__(self, url: str, *, keeps_servers: bool = False) -> None:
        """`url` is the URL of a database on a Unix socket.

        With `keeps_servers` PostgreSQL never learns that a client is gone, as behind a network that drops everything.
        """
        super().__init__()
        self._keeps_servers = keeps_servers
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self._socket = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        self._user, self._database = query["user"][0], parts.path[1:]
        self._armed: tuple[str, Action, threading.Event] | None = None
        self._lock = threading.Lock()
        self._connections: list[ProxiedConnection] = []
        self.delay_seconds = 0.0
        self._pass = asyncio.Event()
        self._pass.set()

    @property
    def url(self) -> str:
        return f"postgresql://{self._user}@127.0.0.1:{self.port}/{self._database}?sslmode=disable&gssencmode=disable"

    def arm(self, point: str, action: Action) -> threading.Event:
        """Run `action` when the next transaction that writes reaches `point`. The returned event is set afterwards."""
        done = threading.Event()
        with self._lock:
            self._armed = (point, action, done)
        return done

    def swallow(self, yes: bool) -> None:
        """Stop delivering, in both directions, or start again and deliver what was held back."""
        self.loop.call_soon_threadsafe(self._pass.clear if yes else self._pass.set)

    def silence(self) -> None:
        """Stop delivering on the connections that are open now. New connections work."""
        for connection in list(self._connections):
            connection.is_silent = True

    async def serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._socket)
        except OSError:
            to_client.transport.abort()
            return
        self.keep(to_server)
        connection = ProxiedConnection(to_client.get_extra_info("peername")[1], to_client, to_server)
        self._connections.append(connection)
        pumps = [
            asyncio.create_task(self._requests(connection, from_client)),
            asyncio.create_task(self._responses(connection, from_server)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            to_client.close()
            if not (self._keeps_servers and connection.is_silent):
                to_server.close()

    async def _requests(self, connection: ProxiedConnection, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            # The start-up message is the only one without a byte for its kind.
            connection.to_server.write(struct.pack("!I", length) + await reader.readexactly(length - 4))
            while not connection.is_cut:
                kind, body = await _message(reader)
                await self._pass.wait()
                if connection.is_silent:
                    continue
                if kind == b"B":  # Bind, which names the portal and then the prepared statement
                    await self._at_request(connection, body.split(b"\0", 2)[1].decode())
                connection.to_server.write(kind + struct.pack("!I", len(body) + 4) + body)
                if kind == b"S":  # Sync, the end of a round trip's requests
                    await asyncio.sleep(self.delay_seconds)

    async def _at_request(self, connection: ProxiedConnection, statement: str) -> None:
        if statement == "begin":
            connection.writes = False
            await self._at(BEFORE_BEGIN, connection)
        elif statement in WRITING:
            connection.writes = True
        elif statement == "commit" and connection.writes:
            await self._at(BEFORE_COMMIT, connection)

    async def _responses(self, connection: ProxiedConnection, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while not connection.is_cut:
                kind, body = await _message(reader)
                await self._pass.wait()
                if connection.is_silent:
                    continue
                committed = kind == b"C" and body == b"COMMIT\0" and connection.writes
                if committed:
                    await self._at(AFTER_COMMIT, connection)
                connection.to_client.write(kind + struct.pack("!I", len(body) + 4) + body)
                if kind == b"Z":  # ReadyForQuery, where "I" means that no transaction is open
                    await asyncio.sleep(self.delay_seconds)
                    if connection.writes and body == b"I":
                        connection.writes = False
                        await self._at(BEFORE_RESPONSE, connection)

    async def _at(self, point: str, connection: ProxiedConnection) -> None:
        with self._lock:
            if self._armed is None or self._armed[0] != point:
                return
            (_, action, done), self._armed = self._armed, None
        # What came before this point must have reached the client when the action starts.
        await connection.to_client.drain()
        await action(connection)
        done.set()
        if connection.is_cut:
            raise ConnectionResetError


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind, length = struct.unpack("!cI", await reader.readexactly(5))
    return kind, await reader.readexactly(length - 4)
