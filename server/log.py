"""How a process logs: one JSON line per message, on standard error."""

import json
import logging
from datetime import UTC, datetime


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _is_no_value_of_a_caller(record: logging.LogRecord) -> bool:
    """False of what gRPC logs of a header that is not UTF-8: the value itself, which may be a key."""
    return not (record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError))


def log_as_json() -> None:
    """Messages of this process go to stderr, one JSON line each, as the lines of the calls do."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(_is_no_value_of_a_caller)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("server").setLevel(logging.INFO)
