"""Reads the share of the machine that this process may use: cores, processor time and memory, as a cgroup grants them.

Whoever shares memory or threads out asks here, and never the machine's own figures: a container that may use one core
and 1 GB of a machine with 64 and 256 is stopped half of the time, or killed, when it takes what the machine has. The
native core reads the cgroups (v1 and v2, every level); cpusets are part of a process's affinity.

Thread safety: everything here may be called from any thread. Nothing is kept: limits change while a program runs.
"""

from __future__ import annotations

import ctypes
import math
import os
from ctypes import c_char, c_char_p, c_double, c_int, c_uint32, c_uint64
from dataclasses import dataclass

from emucxl import native
from emucxl.abi import SizedStructure
from emucxl.errors import UnavailableError

GROUP_BYTES = 256
UNKNOWN = 2**64 - 1


class Struct(SizedStructure):
    """emx_resources of emucxl/resources.h."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("reserved", c_uint32),
        ("memory_bytes", c_uint64),
        ("memory_limit_bytes", c_uint64),
        ("available_bytes", c_uint64),
        ("cpu_quota_cores", c_double),
        ("memory_group", c_char * GROUP_BYTES),
        ("cpu_group", c_char * GROUP_BYTES),
    )


@dataclass(frozen=True)
class Resources:
    """A figure that the system does not tell, or a limit that it does not set, is None."""

    num_cores: int  # this process may run on: affinity, and so cpusets
    cpu_quota_cores: float | None  # processor time in cores: 1.5 is one core and a half
    memory_bytes: int | None  # of the machine
    memory_limit_bytes: int | None  # the least limit of a cgroup
    available_bytes: int | None  # what can still be had before the kernel has to swap or kill
    cpu_group: str  # the directory of the cgroup behind the figure; "" without one
    memory_group: str

    @property
    def num_threads(self) -> int:
        """Threads that can compute all the time: whole cores of the quota, at least one.

        A team that waits for one another is as slow as the thread that was stopped: two threads on a quota of 1.5 cores
        stand still for a quarter of the time.
        """
        if self.cpu_quota_cores is None:
            return self.num_cores
        return max(1, min(self.num_cores, math.floor(self.cpu_quota_cores)))

    @property
    def usable_memory_bytes(self) -> int | None:
        """All the memory that this process could ever have: the machine's, or the least limit."""
        figures = [value for value in (self.memory_bytes, self.memory_limit_bytes) if value is not None]
        return min(figures, default=None)


def read(root: str = "") -> Resources:
    """Reads the limits that hold now. `root`: a directory that stands for / in the names of the kernel's files."""
    num_cores = len(os.sched_getaffinity(0))
    found = Struct()
    try:
        library = native.load()
    except UnavailableError:  # the engine's reference kernels run without it
        return Resources(num_cores, None, None, None, None, "", "")
    native.declare(library, {"emx_resources_read": (c_int, [c_char_p, ctypes.POINTER(Struct)])})
    native.check(library.emx_resources_read(os.fsencode(root), ctypes.byref(found)))
    return Resources(
        num_cores=num_cores,
        cpu_quota_cores=found.cpu_quota_cores or None,
        memory_bytes=found.memory_bytes or None,
        memory_limit_bytes=found.memory_limit_bytes or None,
        available_bytes=None if found.available_bytes == UNKNOWN else found.available_bytes,
        cpu_group=os.fsdecode(found.cpu_group),
        memory_group=os.fsdecode(found.memory_group),
    )


def num_threads() -> int:
    """Threads that can compute at the same time, all the time. At least one."""
    return read().num_threads


def available_bytes() -> int | None:
    """Memory that can still be had before the kernel has to swap or kill; None where the system does not tell."""
    return read().available_bytes
