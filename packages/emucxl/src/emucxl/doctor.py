"""Reports the memories that are real on this machine, those that can only be modelled, and what is missing."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emucxl import __version__, resources

Facts = dict[str, Any]

SYSTEM = Path("/sys")
PROC = Path("/proc")
DEVICES = Path("/dev")
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}  # the number of the system call
_MEMBARRIER_PRIVATE_EXPEDITED = 1 << 3


def examine() -> dict[str, Any]:
    """Sections of facts, and `problems`: what stops emucxl from working here at all."""
    problems: list[str] = []
    if platform.system() != "Linux":
        problems.append(f"emucxl runs on Linux; got {platform.system()}")
    library = _library()
    if library["unavailable"]:
        problems.append(library["unavailable"])
    return {
        "machine": _machine(),
        "library": library,
        "providers": {} if problems else _providers(),
        "numa": _numa(),
        "cxl": _cxl(),
        "timing": _timing(bool(problems)),
        "problems": problems,
    }


def _machine() -> Facts:
    granted = resources.read()
    return {
        "processor": _value(PROC / "cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "usable_cores": granted.num_cores,
        "cpu_quota_cores": granted.cpu_quota_cores,
        "cpu_group": granted.cpu_group,
        "num_threads": granted.num_threads,
        "memory_bytes": granted.memory_bytes,
        "memory_limit_bytes": granted.memory_limit_bytes,
        "memory_group": granted.memory_group,
        "available_bytes": granted.available_bytes,
        "transparent_huge_pages": _chosen(SYSTEM / "kernel/mm/transparent_hugepage/enabled"),
        "shared_huge_pages": _chosen(SYSTEM / "kernel/mm/transparent_hugepage/shmem_enabled"),
        "reserved_huge_pages": int(_value(PROC / "meminfo", "HugePages_Total") or 0),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _library() -> Facts:
    from emucxl import native

    path = native.library_path()
    return {
        "version": __version__,
        "path": str(path),
        "size_bytes": path.stat().st_size if path.exists() else 0,
        "abi_version": native.ABI_VERSION,
        "unavailable": native.unavailable_reason() or _extension_problem(),
    }


def _extension_problem() -> str | None:
    try:
        from emucxl.buffer import bind

        bind()
    except (ImportError, OSError, AttributeError) as error:
        return f"emucxl._buffer can not be used: {error}; reinstall the package"
    return None


def _providers() -> Facts:
    """Where pages can come from here: what it would be, and why not where it can not."""
    from emucxl.providers import Anon, Dax, Null, Numa, Shm

    kinds = {
        "anon": (Anon(), "this machine's memory, private"),
        "shm": (Shm(), "this machine's memory, shared with other processes"),
        "numa": (Numa(0), "the memory of one NUMA node"),
        "dax": (Dax("/dev/dax0.0"), "a memory device, or an ordinary file that stands in for it"),
        "null": (Null(), "no memory: addresses only"),
    }
    found = {}
    for name, (provider, what) in kinds.items():
        reason = provider.unavailable_reason()
        found[name] = {"available": reason is None, "what": what, "reason": reason}
    return found


def _numa() -> Facts:
    """Each node's memory and cores. One with memory and no cores is how the kernel shows CXL memory in use."""
    nodes = [_node(path) for path in sorted((SYSTEM / "devices/system/node").glob("node[0-9]*"), key=_number)]
    return {"nodes": nodes, "memory_only_nodes": [node["node"] for node in nodes if not node["cores"]]}


def _node(path: Path) -> Facts:
    meminfo = _text(path / "meminfo").replace(f"Node {_number(path)} ", "")
    kibibytes = [int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:")]
    return {
        "node": _number(path),
        "cores": _text(path / "cpulist"),
        "memory_bytes": kibibytes[0] * 1024 if kibibytes else 0,
        "distances": [int(distance) for distance in _text(path / "distance").split()],
    }


def _cxl() -> Facts:
    """Devices of the kernel's CXL and device-dax drivers."""
    memories = [
        {
            "name": path.name,
            "volatile_bytes": _integer(path / "ram/size"),
            "persistent_bytes": _integer(path / "pmem/size"),
            "numa_node": _integer(path / "numa_node"),
        }
        for path in sorted((SYSTEM / "bus/cxl/devices").glob("mem[0-9]*"), key=_number)
    ]
    regions = sorted(path.name for path in (SYSTEM / "bus/cxl/devices").glob("region[0-9]*"))
    return {
        "driver": (SYSTEM / "bus/cxl").exists(),
        "memory_devices": memories,
        "regions": regions,
        "dax_devices": [_dax(path) for path in sorted(DEVICES.glob("dax[0-9]*"))],
    }


def _dax(path: Path) -> Facts:
    return {
        "path": str(path),
        "size_bytes": _integer(SYSTEM / "bus/dax/devices" / path.name / "size"),
        "may_open": os.access(path, os.R_OK | os.W_OK),
    }


def _timing(is_broken: bool) -> Facts:
    """Reports what the timing model needs of the machine: an even clock, cheap barriers, and a calibration."""
    flags = set((_value(PROC / "cpuinfo", "flags") or "").split())
    return {
        "clock_source": _text(SYSTEM / "devices/system/clocksource/clocksource0/current_clocksource")
        or "unknown",
        "invariant_tsc": {"constant_tsc", "nonstop_tsc"} <= flags,
        "membarrier": _has_membarrier(),
        "calibration": None if is_broken else _calibration(),
    }


def _calibration() -> Facts | None:
    """Describes the calibration that is kept for this machine, or None. Measures nothing."""
    from emucxl.calibration import cached

    found = cached()
    return None if found is None else asdict(found)


def _has_membarrier() -> bool:
    number = _MEMBARRIER.get(platform.machine())
    if number is None:
        return False
    offered: int = ctypes.CDLL(None, use_errno=True).syscall(number, 0, 0, 0)
    return offered > 0 and bool(offered & _MEMBARRIER_PRIVATE_EXPEDITED)


def real_tiers(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Says of each kind of tier whether it would be real or modelled on this machine, and why."""
    if report["problems"]:
        return
    yield "local", "real: this machine's memory"
    nodes = [node for node in report["numa"]["nodes"] if node["memory_bytes"]]
    numa = report["providers"]["numa"]
    if not numa["available"]:
        yield "other NUMA node", f"modelled: {numa['reason']}"
    elif len(nodes) < 2:
        yield "other NUMA node", f"modelled: this machine has {len(nodes)} node with memory"
    else:
        yield "other NUMA node", f"real: nodes {', '.join(str(node['node']) for node in nodes)}"
    yield "cxl", _cxl_text(report)


def _cxl_text(report: dict[str, Any]) -> str:
    devices = [device["path"] for device in report["cxl"]["dax_devices"] if device["may_open"]]
    if devices:
        return f"real, through {', '.join(devices)}, if that is CXL memory"
    if report["numa"]["memory_only_nodes"]:
        nodes = ", ".join(map(str, report["numa"]["memory_only_nodes"]))
        return f"real, on NUMA node {nodes}, which has memory and no cores"
    if report["cxl"]["memory_devices"]:
        return (
            "modelled: there are CXL devices, but no /dev/dax* to open, and no NUMA node of theirs is online"
        )
    return "modelled: there is no CXL device, no /dev/dax* and no memory-only NUMA node"


def _number(path: Path) -> int:
    return int("".join(filter(str.isdecimal, path.name)))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _integer(path: Path) -> int | None:
    text = _text(path)
    try:
        return int(text, 0)
    except ValueError:
        return None


def _chosen(path: Path) -> str:
    """The word in brackets of a kernel setting such as `always [madvise] never`."""
    return next((word.strip("[]") for word in _text(path).split() if word.startswith("[")), "unknown")


def _value(path: Path, key: str) -> str | None:
    """Returns the text after `key:` in a file of such lines; None when there is no such line."""
    values = (line.partition(":")[2].strip() for line in _text(path).splitlines() if line.startswith(key))
    return next(values, None)
