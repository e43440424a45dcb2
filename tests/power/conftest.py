"""The power can be cut where there is FUSE. Elsewhere these tests are skipped, but where POWER_TESTS=required."""

from __future__ import annotations

import functools
import os

import pytest

from tests.power import mount

_why_not = functools.cache(mount.why_not)


@pytest.fixture
def power() -> None:
    """Skips the test, and says why, where no file system can be mounted."""
    if (why := _why_not()) is not None:
        (pytest.fail if os.environ.get("POWER_TESTS") == "required" else pytest.skip)(why)
