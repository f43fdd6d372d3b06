"""Waits for a condition instead of a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(is_so: Callable[[], object], timeout_s: float = 60, every_s: float = 0.02) -> None:
    """Returns when `is_so()` is true; fails the test after a time that no healthy machine needs."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"still false after {timeout_s:.0f} s"
        time.sleep(every_s)
