"""Writes that are not orders of named numbers: one per transaction, on connections of their own."""

import asyncio

from server.admission import Admission, Response, Shared
from server.config import Settings
from server.errors import Code, Refusal
from server.one_by_one import OneByOne
from server.pending import PendingWrite
from server.rules.values import Replayed, Write
from server.store.writes import STATEMENTS, carry_out
from server.write_connection import WriteConnection


class Writer:
    """The writes of one worker, on `settings.write_connections`."""

    def __init__(self, settings: Settings, database_url: str, shared: Shared) -> None:
        self._admission = Admission(settings.writes_in_progress_max, shared)
        connections = [
            WriteConnection(settings, database_url, shared.unsettled, STATEMENTS)
            for _ in range(settings.write_connections)
        ]
        self._writes = OneByOne(settings, connections, carry_out, "writes")

    @property
    def is_full(self) -> bool:
        """Whether one more write would be refused at once."""
        return self._admission.is_full

    @property
    def in_progress(self) -> int:
        """Writes that wait or run."""
        return self._admission.count

    @property
    def waiting(self) -> dict[str, int]:
        """The length of the queue, by its name."""
        return self._writes.waiting

    async def check_if_idle(self) -> None:
        """Test the connections that are open and not in use. Close those that are lost."""
        await asyncio.gather(*(connection.check_if_idle() for connection in self._writes.connections))

    async def carry_out(self, write: Write, timeout_seconds: float) -> Response:
        """Carry out a write. Raises as `Batcher.place` does."""
        outcome = await self._admission.decision(write, timeout_seconds, self._put)
        return Response(outcome.response, is_replayed=isinstance(outcome, Replayed), key_is_valid=True)

    async def close(self) -> None:
        """Finish the writes that are queued, refuse new ones, and close the connections."""
        await self._writes.close()

    def _put(self, pending: PendingWrite) -> None:
        if self._writes.is_closing:
            raise Refusal(Code.UNAVAILABLE)
        self._writes.put(pending)
