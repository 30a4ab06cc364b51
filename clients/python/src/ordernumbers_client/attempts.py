"""When a call is sent again, and with what. It sends nothing itself.

The rules are those of docs/calling.md of the service.
"""

import json
import random
import re
import time
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2

from ordernumbers_client.call import Call
from ordernumbers_client.errors import NoResponse, OrderNumbersError, Refused, UnexpectedResponse, refusal_of

T = TypeVar("T")

NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
LOST = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    httpx2.ProxyError,
    httpx2.DecodingError,
    OSError,
)
"""No response, or none that can be read. Except with NOT_SENT the call may have been carried out.

OSError: the TimeoutError of asyncio, and errors of TLS that httpx2 lets through.
"""
PASSES = (429, 503, 504)
NOT_DONE = (
    "INVALID_INPUT",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    "VALIDATION_FAILED",
    "NOT_FOUND",
    "INSUFFICIENT_CREDIT",
    "INSUFFICIENT_INVENTORY",
    "LIMIT_EXCEEDED",
    "IDEMPOTENCY_KEY_REUSED",
)
"""No earlier attempt was carried out either.

The service refuses such a request always, whatever its state, or it has looked the idempotency key up before.
"""
UNCLEAR = ("TIMEOUT", "IDEMPOTENCY_IN_PROGRESS")
PAUSE_SECONDS = 1.0
SPREAD_SECONDS_MAX = 30.0
ATTEMPT_SECONDS_MAX = 86_400.0
"""Sockets refuse to wait for ever."""
BASE_URL = re.compile(r"https?://[^\s/?#@:][^\s/?#@]*(/[^\s?#]*)?", re.IGNORECASE)
VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Options:
    """The options of a client. Raises ValueError for a URL or an API key that no request can have."""

    base_url: str
    api_key: str
    deadline_seconds: float
    attempt_seconds: float

    def __post_init__(self) -> None:
        # The texts have neither value: the API key is secret, and a caller may have swapped the two.
        if not BASE_URL.fullmatch(self.base_url):
            raise ValueError("base_url must be http:// or https:// with a host, without a user, query or fragment")
        if not VISIBLE.fullmatch(self.api_key):
            raise ValueError("api_key must be visible ASCII characters")

    def __repr__(self) -> str:
        return f"Options({self.base_url!r})"


class Attempts(Generic[T]):
    """All attempts of one call, until its deadline."""

    def __init__(self, call: Call[T], options: Options, deadline_seconds: float | None) -> None:
        self._call = call
        self._options = options
        self._ends = time.monotonic() + (options.deadline_seconds if deadline_seconds is None else deadline_seconds)
        self._count = 0
        self._attempt_ends = self._ends
        self._may_be_carried_out = call.may_be_carried_out

    def request(self) -> dict[str, Any]:
        """Return the arguments of `httpx2.Client.request` for the next attempt. Its time begins now."""
        now = time.monotonic()
        seconds = max(0.001, min(self._options.attempt_seconds, self._ends - now, ATTEMPT_SECONDS_MAX))
        self._attempt_ends = now + seconds
        headers = {"authorization": f"Bearer {self._options.api_key}"}
        if self._call.idempotency_key is not None:
            headers["idempotency-key"] = self._call.idempotency_key
        return {
            "method": self._call.method,
            "url": self._options.base_url.rstrip("/") + self._call.path,
            "params": self._call.query,
            "json": self._call.body,
            "headers": headers,
            "timeout": seconds,
            "follow_redirects": False,
        }

    def in_time(self, part: bytes) -> bytes:
        """Return a part of a response. Raises ReadTimeout if the time of the attempt is over."""
        if time.monotonic() > self._attempt_ends:
            raise httpx2.ReadTimeout("the response is too slow")
        return part

    def result(self, response: httpx2.Response, body: bytes) -> T:
        """Return the result in a response. Raises Refused or UnexpectedResponse."""
        try:
            if response.status_code == 200:
                return self._call.result_of(json.loads(body))
            raise refusal_of(response.status_code, json.loads(body), _retry_after_seconds(response))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            unexpected = UnexpectedResponse(response.status_code, "not a response of OrderNumbers")
            unexpected.request_id = response.headers.get("x-request-id")
            unexpected.retry_after_seconds = _retry_after_seconds(response)
            raise unexpected from error

    def pause_seconds(self, error: httpx2.RequestError | OSError | OrderNumbersError) -> float:
        """Return how long to wait before the next attempt. Raises the error of the call if there is none."""
        failure = error if isinstance(error, OrderNumbersError) else NoResponse(f"no response: {error!r}")
        is_last = not (isinstance(error, LOST) or _passes(failure))
        self._note(failure, is_sent=not isinstance(error, NOT_SENT))
        pause = _pause_seconds(self._count, getattr(failure, "retry_after_seconds", None))
        self._count += 1
        if is_last or time.monotonic() + pause >= self._ends:
            raise failure from (None if failure is error else error)
        return pause

    def _note(self, failure: OrderNumbersError, *, is_sent: bool) -> None:
        """Say in the error whether the call may have been carried out, by this or by an earlier attempt."""
        code = failure.code if isinstance(failure, Refused) else None
        self._may_be_carried_out |= is_sent and (code is None or code in UNCLEAR)
        failure.idempotency_key = self._call.idempotency_key
        failure.is_outcome_unknown = self._call.is_write and self._may_be_carried_out and code not in NOT_DONE


def _passes(failure: OrderNumbersError) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(failure, Refused) and failure.code == "IDEMPOTENCY_IN_PROGRESS":
        return True
    return isinstance(failure, Refused | UnexpectedResponse) and failure.status in PASSES


def _retry_after_seconds(response: httpx2.Response) -> int | None:
    text = response.headers.get("retry-after", "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _pause_seconds(count: int, retry_after_seconds: int | None) -> float:
    """At least what the service asks for, and more and more at random, so that not all clients come back at once."""
    least = PAUSE_SECONDS if retry_after_seconds is None else retry_after_seconds
    return least + random.uniform(0, min(2 ** min(count, 10) / 2, SPREAD_SECONDS_MAX))  # noqa: S311
