"""Amounts of money: decimal text outside, integer micros inside, never a float."""

import re

from server.errors import OperatorError

MICROS = 1_000_000
_AMOUNT = re.compile(r"(-?)([0-9]{1,9})(?:\.([0-9]{1,6}))?")


def parse_amount(amount: str) -> int:
    """`12.5` -> 12500000 micros. Raises OperatorError unless it is below 10⁹ and has at most 6 decimals."""
    match = _AMOUNT.fullmatch(amount)
    if match is None:
        raise OperatorError(
            f"{amount!r} is not an amount: digits with at most 6 decimals, below 1000000000, like 100.00"
        )
    sign, units, decimals = match.groups("")
    return int(sign + units + decimals.ljust(6, "0"))


def format_amount(micros: int) -> str:
    """12500000 micros -> `12.50`: without trailing zeros, but with at least two decimals."""
    units, decimals = divmod(abs(micros), MICROS)
    return f"{'-' * (micros < 0)}{units}.{f'{decimals:06}'.rstrip('0'):0<2}"
