"""A bar says PASS exactly when the promise is kept."""

from __future__ import annotations

import pytest

from raftq.bench.bars import Bar, at_least, at_most, number, ratio


@pytest.mark.parametrize(
    ("bar", "verdict"),
    [
        (at_least("rate", 0.6, 0.6, ""), "PASS"),
        (at_least("rate", 0.5999, 0.6, ""), "FALL SHORT"),
        (at_most("p50", 0.6, 0.6, "ms"), "PASS"),
        (at_most("p50", 0.6001, 0.6, "ms"), "FALL SHORT"),
        (at_most("elections", 0, 0, ""), "PASS"),
        (at_most("elections", 1, 0, ""), "FALL SHORT"),
        (at_most("idle", 0, 200, "MiB"), "PASS"),
    ],
)
def test_verdict(bar: Bar, verdict: str) -> None:
    assert bar.verdict == verdict
    assert verdict in str(bar)


def test_a_ratio_that_falls_short_never_reads_as_met() -> None:
    assert ratio(0.9999) == "0.99"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (5, "5"),
        (0.0123456, "0.0123"),
        (0.5, "0.500"),
        (12.345, "12.3"),
        (999.6, "1,000"),
        (1234567.8, "1,234,568"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text
