"""Captures: the passes of one rank that were captured, by keys.

A key has all that the work of a pass depends on, but for the numbers that it reads by address. Passes with one key do
the same work on the same memory, so what was captured of one is replayed for all: as native calls (`replayer`), or as a
CUDA graph (`graph_replayer`).

Thread safety: none.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

Captured = TypeVar("Captured")
MAX_SEEN = 4096  # keys that are remembered to have come once


class Captures(Generic[Captured]):
    """The most recently used captures, and the keys that have come before."""

    def __init__(self, max_captures: int) -> None:
        self._max_captures = max_captures
        self._captures: OrderedDict[Hashable, Captured] = OrderedDict()
        self._seen: set[Hashable] = set()

    def find(self, key: Hashable) -> Captured | None:
        """Returns what was captured under `key`, as used just now; None if there is nothing."""
        if key in self._captures:
            self._captures.move_to_end(key)
        return self._captures.get(key)

    def comes_again(self, key: Hashable) -> bool:
        """Whether `key` has come before; from now on it has.

        A capture costs more than a pass, which a key that never comes again is not worth.
        """
        if key in self._seen:
            return True
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen.add(key)
        return False

    def add(self, key: Hashable, captured: Captured) -> None:
        """Keeps `captured`, and forgets the least recently used where there are too many."""
        while len(self._captures) >= self._max_captures:
            self._captures.popitem(last=False)
        self._captures[key] = captured

    def clear(self) -> None:
        """Lets go of all captures."""
        self._captures.clear()
