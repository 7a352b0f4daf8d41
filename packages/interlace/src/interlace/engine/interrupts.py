"""Ctrl-C between steps, never inside one: half a step would leave ranks waiting in a collective."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Holds SIGINT back until the block is over, then raises it. Nests; in a side thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending = False

    def remember(*_: object) -> None:
        nonlocal pending
        pending = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        signal.raise_signal(signal.SIGINT)
