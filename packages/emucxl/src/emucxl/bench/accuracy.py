"""How well the real clock plays what was modelled: latency, bandwidth, fairness on a link, and the load curve."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from emucxl import calibration
from emucxl.bench.harness import Progress, Report, Samples, interleaved
from emucxl.calibration import Calibration
from emucxl.context import Context
from emucxl.errors import EmucxlError
from emucxl.links import Link
from emucxl.timing import CurvePoint, Timing

NAME = "accuracy"
SUMMARY = "The timing model on the real clock: what was asked for against what it took."

PROMISE = 0.05
BANDWIDTHS_GBPS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
KIB, MIB = 1 << 10, 1 << 20
SHARES = ((MIB, MIB), (256 * KIB, 4 * MIB))
SHARED_GBPS = 2.0
LOAD_BYTES = 16_384
LOADS = (0.0, 0.3, 0.6, 0.8)
LOADED = Timing(
    50_000,
    50_000,
    curve=[CurvePoint(0.0, 1.0), CurvePoint(0.4, 1.5), CurvePoint(0.7, 3.0), CurvePoint(1.0, 6.0)],
)
START_NS = 5_000_000  # from being told to beginning
LEAD_NS = 500_000  # of load before the first read


@dataclass(frozen=True)
class Measure:
    """One thing that is measured every round, and what the model says it should be."""

    target: float
    unit: str
    run: Callable[[], float]
    digits: int = 0


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Measures every point, interleaved."""
    here = calibration.measure(0.2 if quick else 2.0)
    check_bytes(here)
    measures = {
        **latencies(here, quick),
        **bandwidths(here, quick),
        **fairness(quick),
        **load_curve(here, quick),
    }
    rounds = 1 if quick else 7
    found = interleaved({name: measure.run for name, measure in measures.items()}, rounds, progress)
    rows = tuple(_row(name, measures[name], samples) for name, samples in found.items())
    return Report(
        name=NAME,
        title="Accuracy of the timing model on the real clock",
        columns=("what", "modelled", "measured", "error"),
        rows=rows,
        notes=_notes(here, rounds, measures),
        results={
            "calibration": _fields(here),
            "rounds": rounds,
            **{
                name: {
                    "modelled": measures[name].target,
                    "measured": samples.to_json(measures[name].unit),
                    "error": samples.median / measures[name].target - 1,
                }
                for name, samples in found.items()
            },
        },
    )


def check_bytes(here: Calibration) -> None:
    """Raises unless a modelled tier returns what was written to it."""
    content = bytes(range(256)) * 1024
    with Context(calibration=here) as context, timed_tier(context, 10_000).alloc(len(content)) as buffer:
        buffer.write(content)
        if buffer.read() != content:
            raise EmucxlError("a modelled tier did not return what was written to it")


def timed_tier(context: Context, latency_ns: float, gbps: float = 0.0, link: Link | None = None) -> Any:
    return context.add_tier("far", 80 * MIB, timing=Timing(latency_ns, latency_ns, gbps, gbps), link=link)


# ---- latency and bandwidth ---------------------------------------------------------------------------------------


def latencies(here: Calibration, quick: bool) -> dict[str, Measure]:
    """64-byte reads: the median of one round."""
    targets = (here.promised_latency_ns, 1_000, 3_000, 10_000, 30_000, 100_000)
    samples = 200 if quick else 2000
    return {
        f"latency {target:,.0f} ns": Measure(target, "ns", partial(median_latency, here, target, samples))
        for target in targets
    }


def median_latency(here: Calibration, target_ns: float, num_samples: int) -> float:
    return calibration.measure_latency(here, target_ns, num_samples).p50_ns


def bandwidths(here: Calibration, quick: bool) -> dict[str, Measure]:
    """One thread reading 32 MiB at a time, at each bandwidth that it reaches by itself and that `here` can play.

    The two may differ on a busy machine, as they are measured one after the other.
    """
    size = (4 if quick else 32) * MIB
    alone = max(read_bandwidth(here, 0, size) for _ in range(3))
    most_gbps = here.num_cores * min(here.read_bandwidth_gbps, here.write_bandwidth_gbps)
    reachable = [gbps for gbps in BANDWIDTHS_GBPS if gbps <= min(0.9 * alone, most_gbps)]
    return {
        f"bandwidth {gbps:g} GB/s": Measure(gbps, "GB/s", partial(read_bandwidth, here, gbps, size), digits=3)
        for gbps in reachable
    }


def read_bandwidth(here: Calibration, gbps: float, size_bytes: int) -> float:
    """Measured gigabytes per second of one long read; at 0, of this machine by itself."""
    with Context(calibration=here) as context, timed_tier(context, 1000, gbps).alloc(size_bytes) as buffer:
        memoryview(buffer)[:] = bytes(size_bytes)
        target = bytearray(b"\1" * size_bytes)  # its pages are there before the clock runs
        begin_ns = time.perf_counter_ns()
        buffer.read_into(target)
        return size_bytes / (time.perf_counter_ns() - begin_ns)


# ---- sharing -----------------------------------------------------------------------------------------------------


def fairness(quick: bool) -> dict[str, Measure]:
    """Two processes on one link: the first one's bandwidth over the second one's."""
    duration_ns = 300_000_000 if quick else 1_000_000_000
    return {
        f"share of {_size(left)} and {_size(right)} readers": Measure(
            1.0, "ratio", partial(share_ratio, left, right, duration_ns), digits=3
        )
        for left, right in SHARES
    }


def share_ratio(left_bytes: int, right_bytes: int, duration_ns: int) -> float:
    calibration.of_this_machine()  # the readers will want it, both at once
    with Link.create(SHARED_GBPS) as link:
        readers = [start_reader(link, size_bytes) for size_bytes in (left_bytes, right_bytes)]
        begin_ns = begin(readers, duration_ns)
        left, right = (result(reader) for reader in readers)
    rates = [found["bytes"] / (found["end_ns"] - begin_ns) for found in (left, right)]
    return float(rates[0] / rates[1])


def load_curve(here: Calibration, quick: bool) -> dict[str, Measure]:
    """64-byte reads while the link is kept busy for a share of the time."""
    samples = 200 if quick else 1000
    return {
        f"latency at load {load:.0%}": Measure(
            expected_latency_ns(load), "ns", partial(latency_under_load, here, load, samples)
        )
        for load in LOADS
    }


def expected_latency_ns(load: float) -> float:
    """The median: the curve, and waiting for a piece of the load where more than half of the reads find one there."""
    piece_ns = LOAD_BYTES / SHARED_GBPS
    waiting_ns = piece_ns * max(0.0, (load - 0.5) / load) if load else 0.0
    return LOADED.read_latency_ns * LOADED.latency_factor(load) + waiting_ns


def latency_under_load(here: Calibration, load: float, num_samples: int) -> float:
    """Measured median of reads through a link that is offered a load.

    The load is bytes that arrive evenly and are queued on the link by this thread, between its reads: whether another
    process got to run would else be part of the measurement.
    """
    samples: list[int] = []
    with Link.create(SHARED_GBPS) as link, Context(calibration=here) as context:
        tier = context.add_tier("far", 8 * MIB, timing=LOADED, link=link)
        with tier.alloc(4 * MIB) as buffer:
            memoryview(buffer)[:] = bytes(4 * MIB)
            offered = arrivals(link, load)
            for number in range(num_samples):
                next(offered)
                _spin(LEAD_NS if number == 0 else number * 7919 % 20_000)  # at any point between two pieces
                next(offered)
                began_ns = time.perf_counter_ns()
                buffer.read(64)
                samples.append(time.perf_counter_ns() - began_ns)
    return statistics.median(samples)


def arrivals(link: Link, load: float) -> Iterator[None]:
    """Each step queues what arrived since the step before."""
    interval_ns = LOAD_BYTES / SHARED_GBPS / load if load else 0.0
    begin_ns = arrival_ns = time.monotonic_ns()
    number = 0
    while True:
        while arrival_ns <= time.monotonic_ns():
            link.reserve("read", LOAD_BYTES if load else 0, arrival_ns)
            number += 1
            arrival_ns = begin_ns + int(number * interval_ns) if load else 1 << 62
        yield


def _spin(duration_ns: int) -> None:
    end_ns = time.monotonic_ns() + duration_ns
    while time.monotonic_ns() < end_ns:
        pass


def start_reader(link: Link, size_bytes: int) -> subprocess.Popen[str]:
    """A process that reads through the link, once it is told to begin: see link_user."""
    command = [sys.executable, "-P", "-m", "emucxl.bench.link_user", str(link.fd), str(size_bytes)]
    return subprocess.Popen(
        command, pass_fds=[link.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def begin(users: list[subprocess.Popen[str]], duration_ns: int) -> int:
    """Lets them begin together, once all of them are ready; returns when that is."""
    for user in users:
        if user.stdout is None or user.stdout.readline() != "ready\n":
            raise EmucxlError(f"a process that should use the link ended with status {user.wait()}")
    begin_ns = time.monotonic_ns() + START_NS
    for user in users:
        if user.stdin is not None:
            user.stdin.write(f"{begin_ns} {begin_ns + duration_ns}\n")
            user.stdin.flush()
    return begin_ns


def result(user: subprocess.Popen[str]) -> dict[str, Any]:
    """The figures that the process printed. Waits until it is done."""
    output, _ = user.communicate(timeout=120)
    if user.returncode:
        raise EmucxlError(f"a process that should use the link ended with status {user.returncode}")
    found: dict[str, Any] = json.loads(output)
    return found


# ---- the report --------------------------------------------------------------------------------------------------


def _row(name: str, measure: Measure, samples: Samples) -> tuple[str, ...]:
    error = samples.median / measure.target - 1
    target = f"{measure.target:,.{measure.digits}f} {measure.unit}"
    return (
        name,
        target,
        samples.text(measure.digits),
        f"{error:+.1%}{'' if abs(error) <= PROMISE else ' !'}",
    )


def _notes(here: Calibration, rounds: int, measures: Mapping[str, Measure]) -> tuple[str, ...]:
    beyond = [f"{gbps:g}" for gbps in BANDWIDTHS_GBPS if f"bandwidth {gbps:g} GB/s" not in measures]
    return (
        f"Measured: the median of {rounds} rounds (and its quartiles); a round's latency is the median of its reads.",
        f"This machine by itself (measured): {here.read_latency_ns:.0f} ns, {here.read_bandwidth_gbps:.1f} GB/s for "
        f"one thread{'; not asked for: ' + ', '.join(beyond) + ' GB/s' if beyond else ''}.",
        f"Promised: within {PROMISE:.0%}; a ! marks what is not.",
    )


def _fields(here: Calibration) -> dict[str, float]:
    return {name: getattr(here, name) for name in here.__dataclass_fields__}


def _size(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB" if size_bytes >= MIB else f"{size_bytes // KIB} KiB"
