"""The age of this process: the time since the command was typed."""

from __future__ import annotations

import os
import time

STARTTIME_FIELD = 22  # of /proc/self/stat, counted from 1; see proc_pid_stat(5)


def since_command_s() -> float | None:
    """Seconds since this process was started, with the kernel's resolution of 0.01 s; None without /proc."""
    try:
        with open("/proc/self/stat") as stat:
            fields_from_3 = stat.read().rpartition(")")[2].split()  # field 2, the name, may hold anything
    except OSError:
        return None
    started_s = int(fields_from_3[STARTTIME_FIELD - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
