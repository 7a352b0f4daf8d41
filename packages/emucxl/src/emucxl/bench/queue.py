"""`emucxl bench queue`: the published queue experiment, local and remote in both orders.

The published program always ran the local queue first, and compared the two. Whatever the first one pays for or gains
by being first is then part of the difference. Here each order runs as often as the other, each in its own context.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emucxl.apps.queue import Queue
from emucxl.bench.harness import Progress, Report, Samples
from emucxl.context import Context
from emucxl.errors import CorruptError, TooFastError
from emucxl.presets import preset
from emucxl.tiers import Tier
from emucxl.timing import Timing

NAME = "queue"
SUMMARY = "15,000 enqueues and dequeues, local and remote in both orders, unmodelled and modelled."

NUM_ELEMENTS, QUICK_ELEMENTS = 15_000, 1_500
ROUNDS, QUICK_ROUNDS = 7, 2
TIER_BYTES = 16 << 20
PRESETS = ("cxl-direct", "cxl-switched", "rdma-far")  # the first of them that this machine can play
ORDERS = (("local", "remote"), ("remote", "local"))
OPERATIONS = ("enqueue", "dequeue")

# Mean milliseconds of 15,000 operations: results/queue_stats.txt of the published repository, where each node had pages
# and an mmap of its own, and "remote" was the other socket of a virtual machine. Its program ran local first.
PUBLISHED_MS = {("enqueue", "local"): 502.98, ("enqueue", "remote"): 567.21}
PUBLISHED_MS |= {("dequeue", "local"): 417.69, ("dequeue", "remote"): 500.40}

Times = dict[tuple[str, str], float]  # us per operation, by operation and tier


@dataclass(frozen=True)
class Case:
    """One way to run the experiment: which tier goes first, and whether the remote one is modelled."""

    first: str
    preset: str | None = None


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Times every case in every round, another one first each time; values are checked as they come out.

    Raises:
        CorruptError: a queue lost, changed or reordered a value.
    """
    num_elements, rounds = (QUICK_ELEMENTS, QUICK_ROUNDS) if quick else (NUM_ELEMENTS, ROUNDS)
    playable = next((name for name in PRESETS if _can_play(name)), None)
    cases = [Case(first, name) for name in dict.fromkeys((None, playable)) for first, _ in ORDERS]
    _time(cases[0], num_elements)  # warm-up
    values: dict[Case, list[Times]] = {case: [] for case in cases}
    for number in range(rounds):
        first = number % len(cases)
        for place, case in enumerate(cases[first:] + cases[:first]):
            if progress is not None:
                what = f"{case.first} first{f', {case.preset}' if case.preset else ''}"
                progress((number + place / len(cases)) / rounds, what)
            values[case].append(_time(case, num_elements))
    if progress is not None:
        progress(1.0, "")
    samples = {case: _samples(found) for case, found in values.items()}
    return _report(samples, playable, num_elements, rounds)


def _can_play(name: str) -> bool:
    try:
        _time(Case("local", name), 1)
    except TooFastError:
        return False
    return True


def _time(case: Case, num_elements: int) -> Times:
    """us per operation on each tier, the tier `case.first` first, in a new context."""
    times: Times = {}
    timing = None if case.preset is None else _latencies(case.preset)
    with Context() as context:
        tiers = {
            "local": context.add_tier("local", TIER_BYTES),
            "remote": context.add_tier("remote", TIER_BYTES, timing=timing),
        }
        for name in next(order for order in ORDERS if order[0] == case.first):
            times["enqueue", name], times["dequeue", name] = _fill_and_drain(tiers[name], num_elements)
    return times


def _latencies(name: str) -> Timing:
    """Those of a preset alone: nodes of a few bytes ask for no bandwidth, and many machines can't play a preset's."""
    timing = preset(name).timing
    return Timing(timing.total_read_latency_ns, timing.total_write_latency_ns)


def _fill_and_drain(tier: Tier, num_elements: int) -> tuple[float, float]:
    values = [(2 * number).to_bytes(4, "little") for number in range(num_elements)]
    with Queue(tier) as queue:
        start_ns = time.perf_counter_ns()
        for value in values:
            queue.enqueue(value)
        full_ns = time.perf_counter_ns()
        taken = [queue.dequeue() for _ in values]
        end_ns = time.perf_counter_ns()
        if taken != values or len(queue):
            raise CorruptError(
                f"a queue in tier {tier.name!r} gave other values than were put in, or another order"
            )
    return (full_ns - start_ns) / num_elements / 1e3, (end_ns - full_ns) / num_elements / 1e3


def _samples(found: list[Times]) -> dict[tuple[str, str], Samples]:
    return {key: Samples(tuple(times[key] for times in found)) for key in found[0]}


def _report(
    samples: dict[Case, dict[tuple[str, str], Samples]], playable: str | None, num_elements: int, rounds: int
) -> Report:
    return Report(
        name=NAME,
        title=f"Queue of {num_elements:,} values of 4 bytes: us per operation, median of {rounds} rounds (quartiles)",
        columns=(
            "operation, order",
            "local",
            "remote",
            "remote / local",
            f"{playable or 'no preset'}, modelled",
            "published",
        ),
        rows=tuple(_rows(samples, playable)),
        notes=(
            "local, remote: unmodelled, both this machine's own memory: what differs is noise, or who came first.",
            f"{playable}, modelled: the remote tier with that preset's latencies, on the real clock; local unmodelled."
            if playable
            else f"This machine is slower than the presets {', '.join(PRESETS)}: nothing was modelled.",
            "published: local / remote, with pages and a system call for each object, in a virtual machine; local "
            "always came first.",
        ),
        results={
            "num_elements": num_elements,
            "cases": [_case(case, found) for case, found in samples.items()],
            "published_ms": {f"{operation}_{tier}": ms for (operation, tier), ms in PUBLISHED_MS.items()},
        },
    )


def _case(case: Case, found: dict[tuple[str, str], Samples]) -> dict[str, Any]:
    figures = {
        f"{operation}_{tier}": times.to_json(
            "us", "modelled" if case.preset and tier == "remote" else "measured"
        )
        for (operation, tier), times in found.items()
    }
    return {"first": case.first, "remote_latencies_of": case.preset, **figures}


def _rows(
    samples: dict[Case, dict[tuple[str, str], Samples]], playable: str | None
) -> Iterator[tuple[str, ...]]:
    for operation in OPERATIONS:
        for first, _ in ORDERS:
            plain = samples[Case(first)]
            local, remote = plain[operation, "local"], plain[operation, "remote"]
            modelled = samples[Case(first, playable)][operation, "remote"]
            yield (
                f"{operation}, {first} first",
                local.text(2),
                remote.text(2),
                remote.over(local).text(2),
                modelled.text(2) if playable else "-",
                _published(operation) if first == "local" else "not run",
            )


def _published(operation: str) -> str:
    local, remote = (PUBLISHED_MS[operation, tier] * 1e3 / NUM_ELEMENTS for tier in ("local", "remote"))
    return f"{local:.1f} / {remote:.1f}"
