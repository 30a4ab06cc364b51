"""Logging of a process: one JSON line per message, on standard error."""

import json
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

_fd = 2


def log_as_json(fd: int = 2) -> None:
    """Log to this file descriptor, one JSON line per message: also warnings, and exceptions that nothing handles.

    The log of calls has the same format.
    """
    global _fd  # noqa: PLW0603
    _fd = fd
    handler = _Handler()
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(_has_no_header_value)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("server").setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_exception
    threading.excepthook = sys.unraisablehook = _log_failure


def write(lines: str) -> None:
    """Write lines, each with its end, to the log. A log that cannot be written must not stop sales."""
    with suppress(OSError):
        for piece in pieces(lines.encode()):
            os.write(_fd, piece)


def pieces(lines: bytes) -> Iterator[bytes]:
    """The lines in as few pieces of at most PIPE_BUF bytes as possible. Only a longer line makes a longer piece.

    A pipe keeps such a piece together, also beside the pieces of other processes.
    """
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + select.PIPE_BUF) + 1 or lines.index(b"\n", start) + 1
        yield lines[start:end]
        start = end


def entry(level: str, message: str, at: float | None = None, **more: str) -> str:
    """One line of the log. `at` is in seconds since 1970, now by default."""
    moment = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    return json.dumps({"time": moment.isoformat(timespec="milliseconds"), "level": level, "message": message} | more)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            write(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        more = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        line = entry(record.levelname, message, record.created, **more)
        # A pipe may mix a longer line with those of other processes. A character takes up to 12 bytes.
        for size in (2000, 1000, 400, 100):
            if len(line) < select.PIPE_BUF:
                break
            texts = {name: _without_middle(text, size) for name, text in more.items()}
            line = entry(record.levelname, _without_middle(message, size), record.created, **texts)
        return line


def _without_middle(text: str, size: int) -> str:
    """The text, or its beginning and its end with this many characters. The end of a traceback has the reason."""
    return text if len(text) <= size else f"{text[: size // 4]} […] {text[-(size - size // 4) :]}"


def _log_failure(failed: Any) -> None:
    _log_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _log_exception(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), traceback)
    else:
        logging.getLogger("server").critical(
            "an exception was not handled", exc_info=(kind, error or kind(), traceback)
        )


def _has_no_header_value(record: logging.LogRecord) -> bool:
    """Whether the message is free of header values."""
    # For a header that is not UTF-8, gRPC logs the error with the header's value. That value may be an API key.
    return not (record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError))
