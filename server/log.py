"""Logging of a process: one JSON line per message, on standard error."""

import json
import logging
from datetime import UTC, datetime


def log_as_json() -> None:
    """Log to stderr, one JSON line per message. The log of calls has the same format."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(_has_no_header_value)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("server").setLevel(logging.INFO)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _has_no_header_value(record: logging.LogRecord) -> bool:
    """Whether the message is free of header values."""
    # For a header that is not UTF-8, gRPC logs the error with the header's value. That value may be an API key.
    return not (record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError))
