"""What a mutant is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """What is wrong, where and how, and the tests that must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
