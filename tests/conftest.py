"""Which tests may run side by side: those that look for free ports for whole clusters run one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

_ONE_AFTER_THE_OTHER = ("bench", "cli", "cluster", "hostile", "power")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in _ONE_AFTER_THE_OTHER:
            item.add_marker(pytest.mark.xdist_group("clusters"))
