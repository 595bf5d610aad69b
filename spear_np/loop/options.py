"""What a caller may choose, checked where it is made."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..factors.factorize import Factors
from ..factors.signs import SignModel
from ..search import Search

SearchFactory = Callable[[Factors, SignModel | None], Search]
"""(factors, sign model or None) → a search of your own."""
DataRange = tuple[float, float]

METHODS = ("auto", "chain", "descent", "sampling")
"""Searches by name."""
LARGEST_END = 1e100
"""Ends of a range from which products overflow.

Derived: as `LARGEST` of the arrays.
"""


@dataclass(frozen=True)
class Options:
    """What a caller of `spear_np.invert` may choose; parameters as there.

    Raises
    ------
    InputError
        If one is of the wrong kind or out of range.
    """

    batch_size: int | None = None
    data_range: DataRange | None = None
    method: str | SearchFactory = "auto"
    seed: int = 0
    time_limit: float = 600.0
    max_proposals: int | None = None

    def __post_init__(self) -> None:
        """Check and settle all of them."""
        if isinstance(self.method, str):
            if self.method not in METHODS:
                msg = f"unknown method {self.method!r}: expected one of {', '.join(METHODS)}"
                raise InputError(msg)
        elif not callable(self.method):
            msg = f"`method` is a {type(self.method).__name__}: expected one of {', '.join(METHODS)}, or a callable"
            raise InputError(msg)
        object.__setattr__(self, "seed", _whole("seed", self.seed, least=0))
        for name, least in (("batch_size", 1), ("max_proposals", 0)):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _whole(name, value, least=least))
        object.__setattr__(self, "time_limit", _seconds(self.time_limit))
        object.__setattr__(self, "data_range", _range(self.data_range))

    @property
    def method_name(self) -> str:
        """The method as results show it."""
        return self.method if isinstance(self.method, str) else "custom"


def _whole(name: str, value: Any, *, least: int) -> int:
    """A whole number of any integer type, `least` or more."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        msg = f"`{name}` is {value!r}: expected a whole number, {least} or more"
        raise InputError(msg)
    return number


def _seconds(value: Any) -> float:
    """A number of seconds, zero or more; infinite for no limit."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        msg = f"`time_limit` is {value!r}: expected a number of seconds, zero or more"
        raise InputError(msg)
    return seconds


def _range(data_range: Any) -> DataRange | None:
    """Two finite numbers, the lower one first; None stays None."""
    if data_range is None:
        return None
    try:
        low, high = (float(end) for end in data_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -LARGEST_END < low < high < LARGEST_END:
        msg = (
            f"`data_range` is {data_range!r}: expected two finite numbers, the lower one first, as (0, 1) for pixels; "
            "leave it out if the range of the inputs is not known"
        )
        raise InputError(msg)
    return low, high
