"""Locks that a fork's child finds free.

A child has only the thread that forked. A lock that another thread held would be held for good there, and whoever waits
for it, be it a finaliser, would hang. So the child's locks are new ones. What they guard may be half-changed: objects
that belong to the parent say so in the child before they look at it.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

_locks: WeakSet[Any] = WeakSet()


def new_lock() -> threading.Lock:
    """A lock, free in the children of this process."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def new_recursive_lock() -> threading.RLock:
    """The same, for a thread that may hold it already."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _renew() -> None:
    for lock in _locks:
        lock._at_fork_reinit()


os.register_at_fork(after_in_child=_renew)
