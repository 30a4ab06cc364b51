"""The metrics page of a worker: `GET /metrics` on a port of its own, for Prometheus. And `GET /healthz`, for probes.

A thread serves it, so the event loop does none of its work. It stays until the worker exits, also during the drain.
"""

import logging
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import EADDRINUSE
from importlib.metadata import version
from itertools import accumulate, count
from socket import AF_INET6, SHUT_RDWR, socket
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, make_wsgi_app
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from server import metrics
from server.config import Address
from server.metrics import FAMILIES, Family, Histogram, Number

log = logging.getLogger(__name__)

PAUSE_SECONDS, PAUSE_AFTER_LINES = 0.001, 50
"""Python runs one thread at a time. In these pauses the event loop gets its turn, about every 0.5 ms."""
REQUESTS_MAX = 8
"""Requests at the same time. For one more, the connection that is open for the longest time is closed."""
REQUEST_SECONDS_MAX = 5.0
"""How long a client may be silent."""
CLOSE_SECONDS_MAX = 0.1
"""How long a new request waits for that. Then its own connection is closed."""


def serve_metrics(host: Address, port: int) -> None:
    """Serve the page from now on. Raises OSError if the port cannot be used."""
    registry = CollectorRegistry()
    registry.register(_WorkerMetrics())
    ProcessCollector(registry=registry)
    page = make_wsgi_app(registry)

    def respond(environment: dict[str, Any], start_response: Any) -> Any:
        request = (environment["REQUEST_METHOD"], environment["PATH_INFO"])
        if request == ("GET", "/metrics"):
            # Always the text format. prometheus_client fails on some values of this header.
            return page(environment | {"HTTP_ACCEPT": ""}, start_response)
        status, body = "404 Not Found", b"not found\n"
        if request == ("GET", "/healthz"):
            up = metrics.DATABASE_UP.value
            status, body = (
                ("200 OK", b"ok\n") if up else ("503 Service Unavailable", b"no order could be carried out\n")
            )
        start_response(status, [("Content-Type", "text/plain")])
        return [body]

    kind = _Server6 if host.version == 6 else _Server
    try:
        server = kind((str(host), port), _Handler)
    except OSError as error:
        reason = "is in use" if error.errno == EADDRINUSE else f"cannot be used: {error.strerror}"
        raise OSError(f"port {port} of {host} {reason}") from None
    server.set_app(respond)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


# ---------------------------------------------------------------- the numbers as Prometheus has them


class _WorkerMetrics(Collector):
    """All metrics of server/metrics.py, and the version that runs."""

    def __init__(self) -> None:
        versions = {"version": version("ordernumbers"), "python": platform.python_version()}
        self._build = InfoMetricFamily("ordernumbers_build", "The version that runs.", value=versions)

    def collect(self) -> Iterator[Metric]:
        for refresh in metrics.before_scrape:
            refresh()
        yield self._build
        lines = count(1)
        for family in FAMILIES:
            metric = _metric(family)
            metric.samples = _PacedSamples(metric.samples, lines)
            yield metric


class _PacedSamples(list[Sample]):
    """Samples that are read with pauses. `lines` counts those of all metrics."""

    def __init__(self, samples: list[Sample], lines: Iterator[int]) -> None:
        super().__init__(samples)
        self._lines = lines

    def __iter__(self) -> Iterator[Sample]:
        for sample in super().__iter__():
            if next(self._lines) % PAUSE_AFTER_LINES == 0:
                time.sleep(PAUSE_SECONDS)
            yield sample


def _metric(family: Family[Number] | Family[Histogram]) -> Metric:
    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    metric = kinds[family.kind](family.name, family.meaning, labels=family.labels)
    for values, child in family.copy().items():  # a copy, because the event loop may add to it
        if isinstance(child, Histogram):
            counts = accumulate(child.counts.copy())
            bounds = [*map(floatToGoString, child.bounds), "+Inf"]
            metric.add_metric(values, list(zip(bounds, counts, strict=True)), child.sum)
        else:
            metric.add_metric(values, child.value)
    found: Metric = metric
    return found


# ---------------------------------------------------------------- HTTP


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS_MAX

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._free = threading.BoundedSemaphore(REQUESTS_MAX)
        self._open: dict[socket, None] = {}
        """The connections of the requests, with the oldest first."""

    def verify_request(self, request: Any, _: Any) -> bool:
        if not self._free.acquire(blocking=False):
            self._close_oldest()
            if not self._free.acquire(timeout=CLOSE_SECONDS_MAX):
                return False
        self._open[request] = None
        return True

    def _close_oldest(self) -> None:
        # A proper request takes some milliseconds. So the oldest one is of a client that sends or reads slowly.
        for oldest in [*self._open][:1]:
            with suppress(OSError):  # it has ended meanwhile
                oldest.shutdown(SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._open[request]
            self._free.release()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own also asks the DNS for the name of the host
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exception(), OSError):  # those are of clients that went away or were silent
            log.info("a request for the metrics failed", exc_info=True)


class _Server6(_Server):
    address_family = AF_INET6
