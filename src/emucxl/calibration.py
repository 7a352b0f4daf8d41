"""Calibration: what this machine does by itself, which is the least that the real clock's model can play.

Measured through the calls that the model delays, kept in the cache directory (`environment.cache_directory`), and
measured again when the processor, the kernel or the library is another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import statistics
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emucxl import abi, native
from emucxl.environment import cache_directory
from emucxl.errors import ArgumentError
from emucxl.timing import Timing

LEAST_BUDGET_S, MOST_BUDGET_S = 0.1, 10.0
_FORMAT = 1
_lock = threading.Lock()


@dataclass(frozen=True)
class Calibration:
    """All of it is measured.

    `num_cores` are those that the process may run on: a tier's bandwidth may be more than one thread's, which several
    threads can then use up.
    """

    read_latency_ns: float
    """Of a 64-byte access to memory that is in no cache, through the library; the median."""
    write_latency_ns: float
    read_bandwidth_gbps: float
    """Of one thread."""
    write_bandwidth_gbps: float
    clock_overhead_ns: float
    """Of reading the clock once."""
    sleep_overshoot_ns: float
    """How late a sleep ends; 99th percentile."""
    exit_overhead_ns: float
    """What a call takes besides its delay."""
    num_cores: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ArgumentError(f"got {field.name}={value!r}; expected a number of at least 0")

    @classmethod
    def from_abi(cls, raw: abi.Calibration) -> Calibration:
        return cls(**{field.name: getattr(raw, field.name) for field in fields(cls)})

    def to_abi(self) -> abi.Calibration:
        return abi.Calibration(**asdict(self))

    def check(self, timing: Timing) -> None:
        """Raises TooFastError, naming the figure and the least that would do, unless this machine can play `timing`."""
        raw, wanted = self.to_abi(), timing.to_abi()
        native.check(abi.load().emx_check_timing(ctypes.byref(raw), ctypes.byref(wanted)))

    def report(self, num_samples: int = 1000, targets_ns: Sequence[float] = ()) -> tuple[Accuracy, ...]:
        """The error that is left: reads of 64 bytes are modelled at several targets, and measured.

        Without `targets_ns` they are the least that is promised (this machine's latency + 250 ns), 1, 10 and 100 us.
        """
        targets = targets_ns or (self.read_latency_ns + 250, 1_000, 10_000, 100_000)
        return tuple(measure_latency(self, target, num_samples) for target in targets)


@dataclass(frozen=True)
class Accuracy:
    """What reads took (measured) whose latency was modelled to be `target_ns`."""

    target_ns: float
    p50_ns: float
    p99_ns: float
    num_samples: int

    @property
    def error(self) -> float:
        """Of the median, as a fraction of the target."""
        return self.p50_ns / self.target_ns - 1


def measure(budget_s: float = 0.5) -> Calibration:
    """Measures this machine, for about `budget_s` seconds (0.1 to 10). Takes 130 MB of memory meanwhile."""
    if not LEAST_BUDGET_S <= budget_s <= MOST_BUDGET_S:
        raise ArgumentError(f"got budget_s={budget_s}; expected {LEAST_BUDGET_S} to {MOST_BUDGET_S}")
    raw = abi.Calibration()
    native.check(abi.load().emx_calibrate(round(budget_s * 1e9), ctypes.byref(raw)))
    return Calibration.from_abi(raw)


def measure_latency(calibration: Calibration, target_ns: float, num_samples: int = 1000) -> Accuracy:
    """Times `num_samples` reads of a tier of that latency, on the real clock.

    Raises:
        TooFastError: this machine is slower than that.
    """
    from emucxl.context import Context

    with Context(calibration=calibration) as context:
        tier = context.add_tier("target", 1 << 26, timing=Timing(target_ns, target_ns))
        with tier.alloc(1 << 25) as buffer:
            buffer.fill(1)  # no page is touched for the first time while we measure
            samples = time_reads(context.handle, buffer.address, 64, num_samples)
    samples.sort()
    p99 = samples[min(len(samples) - 1, round(0.99 * (len(samples) - 1)))]
    return Accuracy(target_ns, statistics.median(samples), p99, num_samples)


def time_reads(context: int, address: int, size_bytes: int, num_samples: int, gap_ns: int = 0) -> list[float]:
    """Nanoseconds that each of `num_samples` reads took, timed in the core (emx_measure_reads)."""
    library = abi.load()
    native.declare(library, _SIGNATURES)
    samples = (ctypes.c_double * num_samples)()
    native.check(library.emx_measure_reads(context, address, size_bytes, gap_ns, num_samples, samples))
    return list(samples)


_SIGNATURES: native.Signatures = {
    "emx_measure_reads": (
        ctypes.c_int,
        [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_uint64,
            ctypes.c_uint32,
            ctypes.POINTER(ctypes.c_double),
        ],
    ),
}


# ---- the cache ---------------------------------------------------------------------------------------------------


def of_this_machine() -> Calibration:
    """The calibration that is kept, or, the first time, a new one (half a second) that is kept from now on."""
    with _lock:
        return cached() or keep(measure())


def cached() -> Calibration | None:
    """What is kept of this machine; None where there is nothing, or nothing that can be used. Measures nothing."""
    try:
        content = json.loads(cache_path().read_text())
        if content["format"] != _FORMAT or content["machine"] != _machine():
            return None
        return Calibration(**content["calibration"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(calibration: Calibration) -> Calibration:
    """Keeps `calibration` for `of_this_machine`, where that is possible; others see the old file or the new one."""
    content = {"format": _FORMAT, "machine": _machine(), "calibration": asdict(calibration)}
    path = cache_path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
            json.dump(content, file, indent=1)
        try:
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
    return calibration


def cache_path() -> Path:
    """Where it is kept."""
    return cache_directory() / "calibration.json"


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "library": _library_version(),
        "abi": native.ABI_VERSION,
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _library_version() -> str:
    try:
        return version("interlace")
    except PackageNotFoundError:
        return "unknown"
