"""`emucxl bench queue`: the published queue experiment, local and remote in both orders.

The published program always ran the local queue first, and compared the two. Whatever the first one pays for or gains
by being first is then part of the difference. Here each order runs as often as the other, each in its own context.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from emucxl.apps.queue import Queue
from emucxl.bench.harness import Progress, Report, Samples
from emucxl.context import Context
from emucxl.errors import CorruptError, TooFastError
from emucxl.tiers import Tier

NAME = "queue"
SUMMARY = "15,000 enqueues and dequeues, local and remote in both orders, unmodelled and modelled."

NUM_ELEMENTS, QUICK_ELEMENTS = 15_000, 1_500
ROUNDS, QUICK_ROUNDS = 7, 2
TIER_BYTES = 16 << 20
PRESET = "cxl-direct"
ORDERS = (("local", "remote"), ("remote", "local"))
OPERATIONS = ("enqueue", "dequeue")

# Mean milliseconds of 15,000 operations: results/queue_stats.txt of the published repository, where each node had pages
# and an mmap of its own, and "remote" was the other socket of a virtual machine. Its program ran local first.
PUBLISHED_MS = {("enqueue", "local"): 502.98, ("enqueue", "remote"): 567.21}
PUBLISHED_MS |= {("dequeue", "local"): 417.69, ("dequeue", "remote"): 500.40}

Times = dict[tuple[str, str], float]  # ns per operation, by operation and tier


@dataclass(frozen=True)
class Case:
    """One way to run the experiment: which tier goes first, and whether the remote one is modelled."""

    first: str
    is_modelled: bool


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Times every case in every round, another one first each time; values are checked as they come out.

    Raises:
        CorruptError: a queue lost, changed or reordered a value.
    """
    num_elements, rounds = (QUICK_ELEMENTS, QUICK_ROUNDS) if quick else (NUM_ELEMENTS, ROUNDS)
    notes = []
    cases = [Case(order[0], is_modelled) for is_modelled in (False, True) for order in ORDERS]
    try:
        _time(Case("local", True), 10)
    except TooFastError as error:
        cases = [case for case in cases if not case.is_modelled]
        notes.append(f"Not modelled here: {error}")
    _time(Case("local", False), num_elements)  # warm-up
    values: dict[Case, list[Times]] = {case: [] for case in cases}
    for number in range(rounds):
        first = number % len(cases)
        for place, case in enumerate(cases[first:] + cases[:first]):
            if progress is not None:
                what = f"{case.first} first{', modelled' if case.is_modelled else ''}"
                progress((number + place / len(cases)) / rounds, what)
            values[case].append(_time(case, num_elements))
    if progress is not None:
        progress(1.0, "")
    samples = {case: _samples(found) for case, found in values.items()}
    return _report(samples, num_elements, rounds, notes)


def _time(case: Case, num_elements: int) -> Times:
    """ns per operation on each tier, the tier `case.first` first, in a new context."""
    times: Times = {}
    with Context() as context:
        tiers = {
            "local": context.add_tier("local", TIER_BYTES),
            "remote": context.add_tier("remote", TIER_BYTES, timing=PRESET if case.is_modelled else None),
        }
        for name in next(order for order in ORDERS if order[0] == case.first):
            enqueue_ns, dequeue_ns = _fill_and_drain(tiers[name], num_elements)
            times["enqueue", name], times["dequeue", name] = enqueue_ns, dequeue_ns
    return times


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
    return (full_ns - start_ns) / num_elements, (end_ns - full_ns) / num_elements


def _samples(found: list[Times]) -> dict[tuple[str, str], Samples]:
    return {key: Samples(tuple(times[key] for times in found)) for key in found[0]}


def _report(
    samples: dict[Case, dict[tuple[str, str], Samples]], num_elements: int, rounds: int, notes: list[str]
) -> Report:
    return Report(
        name=NAME,
        title=f"Queue of {num_elements:,} values of 4 bytes: ns per operation, median of {rounds} rounds (quartiles)",
        columns=(
            "operation, order",
            "local",
            "remote, unmodelled",
            "remote / local",
            f"remote as {PRESET}, modelled",
            "published local",
            "published remote",
        ),
        rows=tuple(_rows(samples)),
        notes=(
            "Unmodelled, both tiers are this machine's own memory: what differs there is noise, or who came first.",
            f"Modelled, the remote tier takes what {PRESET} would (real clock); local is unmodelled.",
            "Published: 15,000 operations with pages and a system call for each object; local always first.",
            *notes,
        ),
        results={
            "num_elements": num_elements,
            "cases": [
                {
                    "first": case.first,
                    "remote_timing": PRESET if case.is_modelled else None,
                    **{
                        f"{operation}_{tier}": found[operation, tier].to_json(
                            "ns", "modelled" if case.is_modelled and tier == "remote" else "measured"
                        )
                        for operation, tier in found
                    },
                }
                for case, found in samples.items()
            ],
            "published_ms": {f"{operation}_{tier}": ms for (operation, tier), ms in PUBLISHED_MS.items()},
        },
    )


def _rows(samples: dict[Case, dict[tuple[str, str], Samples]]) -> Iterator[tuple[str, ...]]:
    for operation in OPERATIONS:
        for first, second in ORDERS:
            plain = samples[Case(first, False)]
            local, remote = plain[operation, "local"], plain[operation, "remote"]
            modelled = samples.get(Case(first, True))
            yield (
                f"{operation}, {first} then {second}",
                local.text(),
                remote.text(),
                remote.over(local).text(2),
                modelled[operation, "remote"].text() if modelled else "-",
                *(_published(operation, tier, first) for tier in ("local", "remote")),
            )


def _published(operation: str, tier: str, first: str) -> str:
    return f"{PUBLISHED_MS[operation, tier] * 1e6 / 15_000:,.0f}" if first == "local" else "not run"
