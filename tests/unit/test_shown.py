"""Searches of a worker leave to each caller the numbers that it was just shown."""

import pytest

from server import reading
from server.reading import Shown
from server.rules.values import AvailableNumber, Criteria


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(reading.time, "monotonic", lambda: now[0])
    return now


def numbers(*names):
    return [AvailableNumber(name, "local", True, True, 0) for name in names]


def test_a_number_that_was_just_shown_comes_last(clock):
    shown, found = Shown(), numbers("a", "b", "c")
    assert shown.choose(found, 2) == numbers("a", "b")
    clock[0] += 0.1
    assert shown.choose(found, 2) == numbers("c", "a")
    assert shown.choose(found, 10) == numbers("b", "a", "c")


def test_it_is_as_good_as_any_other_after_a_while(clock):
    shown, found = Shown(), numbers("a", "b")
    shown.choose(found, 1)
    clock[0] += reading.SHOWN_SECONDS + 1
    assert shown.count(Criteria()) == 0
    assert shown.choose(found, 1) == numbers("a")


def test_a_worker_remembers_a_limited_count_of_numbers(clock, monkeypatch):
    monkeypatch.setattr(reading, "SHOWN_MAX", 3)
    shown = Shown()
    for name in "abcdef":
        shown.choose(numbers(name), 1)
    assert shown.count(Criteria()) == 3


@pytest.mark.parametrize(
    ("criteria", "count"),
    [
        (Criteria(), 4),
        (Criteria(area_code="415"), 2),
        (Criteria(pattern="555"), 3),
        (Criteria(pattern="49"), 1),
        (Criteria(area_code="415", pattern="012"), 1),
        (Criteria(area_code="416"), 0),
    ],
)
def test_only_numbers_that_a_search_could_find_count_for_it(clock, criteria, count):
    shown = Shown()
    shown.choose(numbers("+14155550100", "+14155550123", "+12125557700", "+4930123456"), 4)
    assert shown.count(criteria) == count
