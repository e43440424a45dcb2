"""Waiting for a condition of other processes, which nobody can be told of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value | None], seconds: float, what: str) -> Value:
    """The first truthy value of `condition`, asked every 20 ms. Raises TimeoutError naming `what` was waited for."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)
