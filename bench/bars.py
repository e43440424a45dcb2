"""A figure against what was promised for it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    what: str
    value: float
    limit: float
    unit: str
    #: How far inside the bar the value is: 1 just meets it, 2 is twice as good, below 1 falls short.
    ratio: float
    #: "at least" or "at most".
    sense: str

    @property
    def passed(self) -> bool:
        return self.ratio >= 1

    @property
    def verdict(self) -> str:
        return "PASS" if self.passed else "FALL SHORT"

    def __str__(self) -> str:
        return f"{ratio(self.ratio):>6} {self.verdict:<10} {self.what}: {number(self.value)}, {self.wanted}"

    @property
    def wanted(self) -> str:
        return f"{self.sense} {number(self.limit)} {self.unit}"


def at_least(what: str, value: float, limit: float, unit: str) -> Bar:
    return Bar(what, value, limit, unit, value / limit, "at least")


def at_most(what: str, value: float, limit: float, unit: str) -> Bar:
    """A limit of 0 is met by 0 alone."""
    inside = limit / value if value else math.inf
    return Bar(what, value, limit, unit, inside if limit else float(not value), "at most")


def number(value: float) -> str:
    """Three significant digits, no exponent; counts as they are."""
    if isinstance(value, int) or value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def ratio(value: float) -> str:
    """Rounded down, so that what falls short never reads 1.00."""
    return f"{math.floor(min(value, 1e6) * 100) / 100:,.2f}"
