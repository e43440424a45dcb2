"""Which tests may run side by side: those that look for free ports for whole clusters run one after the other.
And which take long: `make test` leaves them to `make test-long`, so that it is done within five minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

_LONG = (
    "bench/test_catchup.py",
    "bench/test_crowd.py",
    "bench/test_scale.py",
    "cluster/test_openapi.py",
    "hostile/test_hostile.py",
)
_ONE_AFTER_THE_OTHER = ("bench", "cli", "cluster", "hostile", "power")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here)
        if path.parts[0] in _ONE_AFTER_THE_OTHER:
            item.add_marker(pytest.mark.xdist_group("clusters"))
        if path.as_posix() in _LONG:
            item.add_marker(pytest.mark.long)
