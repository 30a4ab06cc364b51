"""What the metrics pages of workers and edge show."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def page(port: int) -> str:
    """The text of the page on that port."""
    response = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return response.text


def samples(ports: Iterable[int]) -> list[Sample]:
    """The samples of all pages."""
    return [
        Sample(sample.name, sample.labels, sample.value)
        for port in ports
        for family in text_string_to_metric_families(page(port))
        for sample in family.samples
    ]


def names(port: int) -> set[str]:
    """The names of all samples of a page, as it has them."""
    return set(re.findall(r"^([a-zA-Z_:][\w:]*)", page(port), re.MULTILINE))


class Metrics:
    """The metrics of several workers, added up."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = list(ports)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples with this name and these labels."""
        return sum(
            sample.value
            for sample in samples(self._ports)
            if _plain(sample.name) == _plain(name) and labels.items() <= sample.labels.items()
        )


def _plain(name: str) -> str:
    return name.removesuffix("_total")  # the parser adds it to the names of Envoy's counters
