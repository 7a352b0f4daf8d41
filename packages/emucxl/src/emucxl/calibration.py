"""Calibration: what this machine does by itself, which is the least that the real clock's model can play.

Measured through the calls that the model delays, tried out, and kept (`emucxl.calibration_cache`). What is kept is used
as long as it is of this machine, this boot and these cores, and a few reads, timed anew, take what it says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from emucxl import abi, calibration_cache, native
from emucxl.errors import ArgumentError, EmucxlError
from emucxl.locks import new_lock
from emucxl.timing import Timing

LEAST_BUDGET_S, MOST_BUDGET_S = 0.1, 10.0
PROMISED_MARGIN_NS, PROMISED_ERROR = 250.0, 0.05  # native/include/emucxl/timing.h
_TRIES = 3
_FASTER = (
    3  # by so much only a measurement that was disturbed is off: caches and clock rates account for less
)
_lock = new_lock()


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
    """The time of a call besides its delay."""
    num_cores: int = 1
    latency_error: float = 0.0
    """Of the median of reads at the least latency that is promised, as a fraction of it, when that was tried out."""
    least_latency_ns: float = 0.0
    """Where that was missed: the least latency that was not, and that may be asked for. 0: the machine's own."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), -1 if field.name == "latency_error" else 0
            if not isinstance(value, int | float) or not least <= value < float("inf"):
                raise ArgumentError(f"got {field.name}={value!r}; expected a number of at least {least}")

    @classmethod
    def from_abi(cls, raw: abi.RawCalibration) -> Calibration:
        return cls(**{field.name: getattr(raw, field.name) for field in fields(cls)})

    def to_abi(self) -> abi.RawCalibration:
        return abi.RawCalibration(**asdict(self))

    @property
    def promised_latency_ns(self) -> float:
        """From here on the median of reads is within `PROMISED_ERROR` of what was modelled."""
        return max(self.read_latency_ns + PROMISED_MARGIN_NS, self.least_latency_ns)

    def check(self, timing: Timing) -> None:
        """Raises TooFastError, naming the figure and the least that would do, unless this machine can play `timing`."""
        raw, wanted = self.to_abi(), timing.to_abi()
        native.check(abi.load().emx_check_timing(ctypes.byref(raw), ctypes.byref(wanted)))

    def report(self, num_samples: int = 1000, targets_ns: Sequence[float] = ()) -> tuple[Accuracy, ...]:
        """The error that is left: reads of 64 bytes are modelled at several targets, and measured.

        Without `targets_ns` they are the least that is promised, 1, 10 and 100 us.
        """
        targets = targets_ns or (self.promised_latency_ns, 1_000, 10_000, 100_000)
        return tuple(measure_latency(self, target, num_samples) for target in targets)


@dataclass(frozen=True)
class Accuracy:
    """The measured times of reads whose latency was modelled to be `target_ns`."""

    target_ns: float
    p50_ns: float
    p99_ns: float
    num_samples: int

    @property
    def error(self) -> float:
        """The error of the median, as a fraction of the target."""
        return self.p50_ns / self.target_ns - 1


def measure(budget_s: float = 0.5) -> Calibration:
    """Measures this machine, for about `budget_s` seconds (0.1 to 10), and tries out what it found.

    Where that misses the promise it measures again, three times at most, and returns the best: its `latency_error` and
    `least_latency_ns` say what is left. Takes 130 MB of memory meanwhile.
    """
    if not LEAST_BUDGET_S <= budget_s <= MOST_BUDGET_S:
        raise ArgumentError(f"got budget_s={budget_s}; expected {LEAST_BUDGET_S} to {MOST_BUDGET_S}")
    tried: list[Calibration] = []
    while len(tried) < _TRIES and (not tried or tried[-1].least_latency_ns > 0):
        tried.append(_measure_once(budget_s))
    return min(tried, key=lambda each: (each.least_latency_ns, abs(each.latency_error)))


def _measure_once(budget_s: float) -> Calibration:
    raw = abi.RawCalibration()
    native.check(abi.load().emx_calibrate(round(budget_s * 1e9), ctypes.byref(raw)))
    return Calibration.from_abi(raw)


def agrees(calibration: Calibration, tries: int = 5) -> bool:
    """Whether reads take what `calibration` says. A load may disturb a try, but not all.

    Delays are as exact on a machine that is faster than its calibration, so a read without one is timed too: what was
    measured while others slowed the machine down is not kept for longer. Takes some tens of milliseconds.
    """
    try:
        if measure_latency(calibration, 0, 151).p50_ns < calibration.read_latency_ns / _FASTER:
            return False
        found = (
            measure_latency(calibration, calibration.promised_latency_ns, 151, 1 << 20) for _ in range(tries)
        )
        return any(abs(accuracy.error) <= PROMISED_ERROR for accuracy in found)
    except EmucxlError:
        return False


def measure_latency(
    calibration: Calibration, target_ns: float, num_samples: int = 1000, size_bytes: int = 1 << 25
) -> Accuracy:
    """Times `num_samples` reads, all over `size_bytes` of a tier of that latency, on the real clock.

    Raises:
        TooFastError: this machine is slower than that.
    """
    library, handle = abi.load(), ctypes.c_void_p()
    raw = calibration.to_abi()
    config = abi.ContextConfig(clock=abi.CLOCK_REAL, calibration=ctypes.pointer(raw))
    native.check(library.emx_context_open(ctypes.byref(config), ctypes.byref(handle)))
    try:
        address = _fill_tier(library, handle, Timing(target_ns, target_ns), size_bytes)
        samples = sorted(_time_reads(library, handle, address, num_samples))
    finally:
        library.emx_context_close(handle)
    middle, p99 = num_samples // 2, round(0.99 * (num_samples - 1))
    return Accuracy(target_ns, (samples[~middle] + samples[middle]) / 2, samples[p99], num_samples)


def _fill_tier(
    library: ctypes.CDLL, context: ctypes.c_void_p, timing: Timing, size_bytes: int
) -> ctypes.c_void_p:
    """Adds a tier and allocates in it; all pages are touched, so that no read is the first of its page."""
    config = abi.TierConfig(name=b"target", capacity_bytes=2 * size_bytes, fd=-1, timing=timing.to_abi())
    tier, address = ctypes.c_uint32(), ctypes.c_void_p()
    native.check(library.emx_tier_add(context, ctypes.byref(config), ctypes.byref(tier)))
    native.check(library.emx_alloc(context, tier, size_bytes, 0, ctypes.byref(address)))
    native.check(library.emx_memset(context, address, 0, 1, size_bytes))
    return address


def _time_reads(
    library: ctypes.CDLL, context: ctypes.c_void_p, address: ctypes.c_void_p, num_samples: int
) -> list[float]:
    """Nanoseconds that each of `num_samples` reads of 64 bytes took, timed in the core (emx_measure_reads)."""
    native.declare(library, _SIGNATURES)
    samples = (ctypes.c_double * num_samples)()
    native.check(library.emx_measure_reads(context, address, 64, 0, num_samples, samples))
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


# ---- what is kept ------------------------------------------------------------------------------------------------

_agreed: tuple[str, Calibration] | None = None  # what this process has tried out already, and on which cores


def of_this_machine() -> Calibration:
    """The calibration that is kept, if reads still take what it says; else a new one (a second), kept from now on."""
    global _agreed
    with _lock:
        cores, kept = calibration_cache.cores(), cached()
        if kept is None or ((cores, kept) != _agreed and not agrees(kept)):
            kept = keep(measure())
        _agreed = (cores, kept)
        return kept


def cached() -> Calibration | None:
    """Returns the calibration that is kept for this machine and these cores, or None. Measures nothing."""
    try:
        return Calibration(**calibration_cache.load())
    except (LookupError, TypeError, ArgumentError):
        return None


def keep(calibration: Calibration) -> Calibration:
    """Keeps `calibration` for `of_this_machine`, where that is possible; others see the old file or the new one."""
    calibration_cache.store(asdict(calibration))
    return calibration


def cache_path() -> Path:
    """Where it is kept."""
    return calibration_cache.path()
