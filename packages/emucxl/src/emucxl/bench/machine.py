"""The description of a machine and of a checkout, as records of benchmarks hold it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emucxl import resources


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernel and Python; what a container grants of them, where it grants less."""
    granted = resources.read()
    return {
        "cpu": cpu_model(),
        "cores": granted.num_cores,
        "cpu_quota_cores": granted.cpu_quota_cores,
        "memory_bytes": granted.usable_memory_bytes,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def slug() -> str:
    """The folder of this machine's results: processor and cores, whole ones of a quota."""
    words = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return f"{words}-{resources.num_threads()}-cores"


def cores_apart(system: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """The cores that this process may use: one thread of each physical core first, then the second ones, and so on."""
    usable = sorted(os.sched_getaffinity(0))
    turns = {
        core: sum(sibling < core for sibling in _siblings(system, core) & set(usable)) for core in usable
    }
    return sorted(usable, key=lambda core: (turns[core], core))


def _siblings(system: Path, core: int) -> set[int]:
    """The hardware threads of a core's physical core ("0,64" or "0-1"); itself where the kernel says nothing."""
    try:
        ranges = (system / f"cpu{core}" / "topology" / "thread_siblings_list").read_text().strip().split(",")
        bounds = [each.split("-") for each in ranges]
        return {number for low, *high in bounds for number in range(int(low), int((high or [low])[0]) + 1)}
    except (OSError, ValueError):
        return {core}


def cpu_model() -> str:
    """The processor as the kernel names it, with family and model where its name alone says little."""
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    name = found.get("model name", platform.machine())
    return f"{name} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"


def busy_cores(interval_s: float = 1.0) -> float:
    """Cores kept busy over `interval_s`, by anything, time stolen by other virtual machines included."""
    # The clock first: on a busy machine time passes between two lines, and more would seem busy.
    start_s = time.monotonic()
    before = _busy_ticks()
    time.sleep(interval_s)
    ticks = _busy_ticks() - before
    return ticks / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start_s)


def _busy_ticks() -> int:
    # user nice system idle iowait irq softirq steal, of all cores together
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]


def source() -> dict[str, Any]:
    """Commit of the checkout this package runs from; None for an installed package."""
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD")
    return {
        "commit": commit,
        "is_modified": bool(_git(here, "status", "--porcelain", "--untracked-files=no")) if commit else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(at: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(at), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
