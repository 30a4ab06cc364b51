"""Logging of a process: one JSON line per message, on standard error."""

import json
import logging
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType


def log_as_json() -> None:
    """Log to stderr, one JSON line per message: also warnings, and exceptions that nothing handles.

    The log of calls has the same format.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(_has_no_header_value)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("server").setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_exception
    threading.excepthook = lambda failed: _log_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)


def entry(level: str, message: str, at: float | None = None, **more: str) -> str:
    """One line of the log. `at` is in seconds since 1970, now by default."""
    moment = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    return json.dumps({"time": moment.isoformat(timespec="milliseconds"), "level": level, "message": message} | more)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        more = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return entry(record.levelname, record.getMessage(), record.created, **more)


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
