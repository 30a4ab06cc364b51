"""The log of calls: one JSON line per call, on standard error."""

import asyncio
import time
from datetime import UTC, datetime

from server import log, metrics
from server.store.reads import Principal


class CallRecord:
    """One call, as it is logged."""

    __slots__ = ("code", "method", "principal", "request_id", "started", "trace_id")

    def __init__(self, method: str, request_id: str) -> None:
        self.method = method
        self.request_id = request_id
        self.started = time.monotonic()
        self.principal: Principal | None = None
        self.code: str = "OK"
        self.trace_id = ""

    def __str__(self) -> str:
        ms = (time.monotonic() - self.started) * 1000
        key = self.principal
        trace = f', "trace_id": "{self.trace_id}"' if self.trace_id else ""
        owner = f', "organization": "{key.organization_id}", "key_id": "{key.api_key_id}"' if key else ""
        # Not the json module, which costs ten times as much. No value here is a caller's text, so none needs escapes.
        return (
            f'{{"time": "{_clock.text()}", "request_id": "{self.request_id}", "method": "{self.method}", '
            f'"code": "{self.code}", "ms": {ms:.3f}{owner}{trace}}}'
        )


class _Clock:
    """The time as a text. It is made once per millisecond, because many calls end in the same one."""

    def __init__(self) -> None:
        self._ms = 0
        self._text = ""

    def text(self) -> str:
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._ms = ms
            self._text = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
        return self._text


_clock = _Clock()


class CallLog:
    """Writes records. Those of one turn of the event loop share one write."""

    def __init__(self) -> None:
        self._records: list[CallRecord] = []

    def write(self, record: CallRecord) -> None:
        if not self._records:
            asyncio.get_running_loop().call_soon(self._flush)
        self._records.append(record)

    def _flush(self) -> None:
        records, self._records = self._records, []
        ended = time.monotonic()
        metrics.count_calls([(each.method, each.code, ended - each.started) for each in records])
        log.write("\n".join([*map(str, records), ""]))
