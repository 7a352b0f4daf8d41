"""Guards of a group of ranks: no Ctrl-C inside a step, and no use in a fork of the process that started it.

Half a step would leave ranks waiting in a collective. A fork copies the objects, not the threads and ranks behind them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from interlace.errors import EngineError


class Owner:
    """The process that made something.

    A child that used its copy would wait for threads that it does not have, or speak to the parent's ranks in the
    parent's place, and so end the parent's engine. An error says so before anything is touched. Closing does nothing.
    """

    def __init__(self, what: str) -> None:
        self._what, self._pid = what, os.getpid()

    @property
    def is_elsewhere(self) -> bool:
        """True in a fork of the owner."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises EngineError in a fork."""
        if self.is_elsewhere:
            raise EngineError(
                f"this {self._what} belongs to process {self._pid}, and process {os.getpid()} is a fork of it: use it "
                f"there, or make a new one in a process of its own (multiprocessing's 'spawn')"
            )


class _Interrupt:
    """The state of SIGINT, of which a process has one handler: whether it is held back, and whether one came."""

    is_deferred = False
    is_pending = False

    @classmethod
    def remember(cls, *_: object) -> None:
        cls.is_pending = True


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Holds SIGINT back until the block is over, then raises it. Nests: the outermost block is the one that counts.

    In a side thread it does nothing.
    """
    if _Interrupt.is_deferred or threading.current_thread() is not threading.main_thread():
        yield  # two changes of a handler cost as much as a small kernel
        return
    _Interrupt.is_pending = False
    previous = signal.signal(signal.SIGINT, _Interrupt.remember)
    _Interrupt.is_deferred = True
    try:
        yield
    finally:
        _Interrupt.is_deferred = False
        signal.signal(signal.SIGINT, previous)
    if _Interrupt.is_pending:
        signal.raise_signal(signal.SIGINT)
