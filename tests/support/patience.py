"""Waiting for what another thread or process does. The bound only ends a test that would hang: no fact lies in it."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 100.0  # less than pytest's own timeout, so that the failure says what was waited for


def wait_until(condition: Callable[[], bool], what: str = "what was waited for") -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not come within {PATIENCE_S:g} s"
        time.sleep(0.01)
