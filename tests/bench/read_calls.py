"""Searches and lists in a large inventory, one call at a time, and orders beside searches."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles
from time import monotonic, perf_counter

import grpc
import psycopg

from ordernumbers.v1.inventory_pb2 import SearchNumbersRequest
from ordernumbers.v1.phone_numbers_pb2 import ListNumbersRequest, ListNumbersResponse
from server.store import search_indexes
from tests.bench.database import PRICE_MICROS, BenchCustomer, BenchDatabase
from tests.bench.parts import Address

AREA_CODES = range(300, 500)
NUMBERS_PER_AREA = 50_000
OWNED_NUMBERS = 100_000
"""How many numbers the organization has whose list is read."""
NUMBERS_PER_ORDER = 100
SEARCHES_PER_SECOND = 20
AREA_SIZE = 10_000_000
"""How many numbers can exist in an area code."""
AREA_STEP = 199  # has no common factor with AREA_SIZE, so its multiples are all numbers
SERVICE = "/ordernumbers.v1.PhoneNumberService"

# In each area code the numbers are spread over all ten million that exist there. A half of them is not available.
INSERT_AREAS = f"""
    INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros, free_at)
    SELECT
      '+1' || area_code || lpad((i * {AREA_STEP} %% {AREA_SIZE})::text, 7, '0'),
      'local',
      true,
      false,
      {PRICE_MICROS},
      CASE WHEN hashint8(i * 1000 + area_code) %% 2 = 0 THEN timestamptz '2099-01-01' END
    FROM generate_series({AREA_CODES.start}, {AREA_CODES.stop - 1}) AS area_code
    CROSS JOIN generate_series(%(first)s::bigint, %(last)s::bigint) AS i
    ORDER BY 1
"""


def add_areas(database: BenchDatabase, indexes: range = range(NUMBERS_PER_AREA)) -> None:
    """Add the numbers with these indexes to each area code: by default ten million in all."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        for name, _ in (search_indexes.SEARCH, search_indexes.DIGITS):
            connection.execute(f"DROP INDEX {name}")  # type: ignore[call-overload]  built faster afterwards
        parameters = {"first": indexes.start, "last": indexes.stop - 1}
        connection.execute(INSERT_AREAS, parameters)  # type: ignore[call-overload]
        connection.execute("VACUUM ANALYZE phone_number")
    search_indexes.build(database.engine)
    database.checkpoint()


@dataclass(frozen=True)
class Latencies:
    """Of calls one after the other."""

    count: int
    seconds: float
    p50_ms: float
    p99_ms: float


class Caller:
    """Makes calls of one customer to its worker."""

    def __init__(self, worker: Address, customer: BenchCustomer) -> None:
        self._channel = grpc.insecure_channel(f"{worker[0]}:{worker[1]}")
        self._metadata = [("authorization", f"Bearer {customer.key}")]
        self._random = random.Random(1)
        self._cursor = ""

    def close(self) -> None:
        self._channel.close()

    def measure(self, call: Callable[[], bytes], warm_seconds: float, seconds: float) -> Latencies:
        """Repeat a call, first without measuring. Raises grpc.RpcError if one is refused."""
        _repeat(call, warm_seconds)
        started = monotonic()
        latencies_ms = _repeat(call, seconds)
        cuts = quantiles(latencies_ms, n=100, method="inclusive")
        return Latencies(len(latencies_ms), monotonic() - started, cuts[49], cuts[98])

    def search(self, *, area: bool, digits: int) -> bytes:
        """Search for ten numbers with a random area code, with random digits, or with both."""
        request = SearchNumbersRequest()
        if area:
            request.area_code = str(self._random.choice(AREA_CODES))
        if digits:
            request.pattern = "".join(self._random.choices("0123456789", k=digits))
        return self._call("SearchNumbers", request)

    def list_page(self) -> bytes:
        """Read the next page of the list, and after the last page the first one again."""
        request = ListNumbersRequest(limit=100, cursor=self._cursor or None)
        response = self._call("ListNumbers", request)
        self._cursor = ListNumbersResponse.FromString(response).meta.next_cursor.string_value
        return response

    def _call(self, name: str, request: SearchNumbersRequest | ListNumbersRequest) -> bytes:
        method = self._channel.unary_unary(f"{SERVICE}/{name}")
        response: bytes = method(request.SerializeToString(), metadata=self._metadata, timeout=30)
        return response


def _repeat(call: Callable[[], bytes], seconds: float) -> list[float]:
    """Repeat a call, at least twice. Return the milliseconds of each."""
    latencies_ms: list[float] = []
    until = monotonic() + seconds
    while monotonic() < until or len(latencies_ms) < 2:
        started = perf_counter()
        call()
        latencies_ms.append((perf_counter() - started) * 1000)
    return latencies_ms


@contextmanager
def searching(caller: Caller) -> Iterator[None]:
    """Search in an area code `SEARCHES_PER_SECOND` times a second, in another thread."""
    stopped = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        next_at = monotonic()
        while not stopped.wait(max(0.0, next_at - monotonic())):
            next_at += 1 / SEARCHES_PER_SECOND
            try:
                caller.search(area=True, digits=0)
            except grpc.RpcError as error:
                failures.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
    if failures:
        raise RuntimeError(f"a search was refused: {failures[0]}")
