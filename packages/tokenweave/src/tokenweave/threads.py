"""Hints to the operating system about a lane's thread. Where it refuses them, lanes are slower but no less correct."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

SLICE_NS = 100_000  # the least that Linux grants
SLACK_NS = 1

_PR_SET_TIMERSLACK = 29
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class _SchedAttr(ctypes.Structure):
    """Linux's struct sched_attr, as it began."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]


def wake_promptly() -> None:
    """Have the calling thread wake up soon after it could go on, on a core that another thread computes on.

    Its sleeps end when they should and not up to 50 us later, and it asks for the core in short turns: a scheduler that
    knows of that (Linux from 6.12 on) gives it the core at once when it wakes, in the middle of another's longer turn.
    """
    with suppress(AttributeError, OSError):  # no Linux
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0)
        number = _SYS_SCHED_SETATTR.get(platform.machine())
        if number is not None:
            nice = os.getpriority(os.PRIO_PROCESS, 0)
            attr = _SchedAttr(size=ctypes.sizeof(_SchedAttr), nice=nice, runtime=SLICE_NS)
            libc.syscall(number, 0, ctypes.byref(attr), 0)


@contextmanager
def staying_on(cores: Collection[int]) -> Iterator[None]:
    """The calling thread stays on `cores` inside; on none given, wherever it is put."""
    before: set[int] = set()
    if cores:
        with suppress(AttributeError, OSError):  # no Linux, or cores that are not for this process
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if before:
            with suppress(OSError):
                os.sched_setaffinity(0, before)
