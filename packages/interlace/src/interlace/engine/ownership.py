"""Which process an engine belongs to. A fork copies the objects, and not the threads and ranks behind them."""

from __future__ import annotations

import os

from interlace.errors import EngineError


class Owner:
    """The process that made something.

    A child that used the copy would wait for threads that it does not have, or speak to the parent's ranks in the
    parent's place, which ends the parent's engine. So it is told, before anything is touched; closing does nothing.
    """

    def __init__(self, what: str) -> None:
        self._what, self._pid = what, os.getpid()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process is a fork of the owner."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises EngineError in a fork."""
        if self.is_elsewhere:
            raise EngineError(
                f"this {self._what} belongs to process {self._pid}, and process {os.getpid()} is a fork of it: use it "
                f"there, or make a new one in a process of its own (multiprocessing's 'spawn')"
            )
