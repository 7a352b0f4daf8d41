"""`emucxl bench kv`: the published key-value experiment, its figures beside ours, and what better policies reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from emucxl.apps.policies import POLICIES
from emucxl.bench.harness import Progress, Report
from emucxl.bench.kv_experiment import (
    NUM_GETS,
    PUBLISHED,
    XS,
    clairvoyant,
    has_published_rand,
    mixed,
    percentage,
    play,
    requests,
)
from emucxl.context import Context
from emucxl.errors import CorruptError

NAME = "kv"
SUMMARY = "Local hits of a two-tier key-value store per policy, the published figures beside them."

QUICK_XS = (0, 10, 50)
TIER_BYTES = 16 << 20
LOCAL, REMOTE = "local-ddr5", "cxl-direct"  # presets
ORDERS: dict[str, Callable[[list[int]], list[int]]] = {"published": list, "mixed": mixed}  # of the same GETs


@dataclass(frozen=True)
class Outcome:
    """The result of one policy over the GETs of one x."""

    local_hits: int
    promotions: int
    evictions: int
    modelled_ns_per_get: float

    @property
    def percent(self) -> float:
        return percentage(self.local_hits, NUM_GETS)


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Plays the experiment with every policy, in the published order and in random order.

    Raises:
        CorruptError: a value is wrong, or a published policy does not give its published figure.
    """
    xs = QUICK_XS if quick else XS
    told = progress or (lambda fraction, what: None)
    outcomes: dict[str, dict[str, list[Outcome]]] = {
        order: {name: [] for name in POLICIES} for order in ORDERS
    }
    limits: dict[str, list[float]] = {order: [] for order in ORDERS}
    for done, (order, x) in enumerate((order, x) for order in ORDERS for x in xs):
        keys = ORDERS[order](requests(x))
        limits[order].append(percentage(clairvoyant(keys), NUM_GETS))
        for place, name in enumerate(POLICIES):
            told((done + place / len(POLICIES)) / (len(ORDERS) * len(xs)), f"{name}, x = {x}, {order} order")
            outcomes[order][name].append(_play(keys, name))
    told(1.0, "")
    is_comparable = has_published_rand()
    if is_comparable:
        _compare(xs, outcomes["published"])
    return _report(xs, outcomes, limits, is_comparable)


def _play(keys: Sequence[int], policy: str) -> Outcome:
    with Context(clock="virtual") as context:
        local = context.add_tier("local", TIER_BYTES, timing=LOCAL)
        remote = context.add_tier("remote", TIER_BYTES, timing=REMOTE)
        play([], policy, local, remote)
        puts_ns = context.now_ns
        stats = play(keys, policy, local, remote)
        elapsed_ns = context.now_ns - 2 * puts_ns
    return Outcome(stats.local_hits, stats.promotions, stats.evictions, elapsed_ns / len(keys))


def _compare(xs: Sequence[int], outcomes: dict[str, list[Outcome]]) -> None:
    for policy, published in PUBLISHED.items():
        for x, outcome in zip(xs, outcomes[policy], strict=True):
            wanted = published[XS.index(x)]
            if outcome.percent != wanted:
                raise CorruptError(
                    f"policy {policy}, x = {x}: got {outcome.percent} %, published is {wanted} %"
                )


def _report(
    xs: Sequence[int],
    outcomes: dict[str, dict[str, list[Outcome]]],
    limits: dict[str, list[float]],
    is_comparable: bool,
) -> Report:
    return Report(
        name=NAME,
        title=f"Two-tier key-value store: {NUM_GETS:,} GETs, 90 % of them of the first x % of 1000 keys, 300 local",
        columns=("local hits in % of GETs; x =", *map(str, xs)),
        rows=tuple(_rows(xs, outcomes, limits)),
        notes=_notes(is_comparable),
        results={
            "x": list(xs),
            "unit": "local hits in % of GETs",
            "kind": "measured",
            "published": {name: [figures[XS.index(x)] for x in xs] for name, figures in PUBLISHED.items()},
            **{
                f"{order}_order": {
                    "clairvoyant": limits[order],
                    **{
                        name: {
                            "percent": [outcome.percent for outcome in found],
                            "local_hits": [outcome.local_hits for outcome in found],
                            "promotions": [outcome.promotions for outcome in found],
                            "evictions": [outcome.evictions for outcome in found],
                            "ns_per_get": {
                                "kind": "modelled",
                                "local": LOCAL,
                                "remote": REMOTE,
                                "values": [outcome.modelled_ns_per_get for outcome in found],
                            },
                        }
                        for name, found in by_policy.items()
                    },
                }
                for order, by_policy in outcomes.items()
            },
        },
    )


def _rows(
    xs: Sequence[int], outcomes: dict[str, dict[str, list[Outcome]]], limits: dict[str, list[float]]
) -> Iterator[tuple[str, ...]]:
    gap = ("",) * len(xs)
    yield ("hot keys first, as published:", *gap)
    for name, found in outcomes["published"].items():
        if name in PUBLISHED:
            yield (f"  {name}, published", *(f"{PUBLISHED[name][XS.index(x)]:.2f}" for x in xs))
        yield (f"  {name}", *(f"{outcome.percent:.2f}" for outcome in found))
    yield ("  limit (knows what will come)", *(f"{percent:.2f}" for percent in limits["published"]))
    yield ("the same GETs in random order:", *gap)
    for name, found in outcomes["mixed"].items():
        yield (f"  {name}", *(f"{outcome.percent:.2f}" for outcome in found))
    yield ("  limit (knows what will come)", *(f"{percent:.2f}" for percent in limits["mixed"]))
    yield ("modelled ns per GET, as published:", *gap)
    for name, found in outcomes["published"].items():
        yield (f"  {name}, modelled", *(f"{outcome.modelled_ns_per_get:.0f}" for outcome in found))


def _notes(is_comparable: bool) -> tuple[str, ...]:
    policies = [f"{name}: {policy.summary}" for name, policy in POLICIES.items()]
    modelled = (
        f"Hits are counted. Nanoseconds are modelled, with the presets {LOCAL} and {REMOTE}; they include the moves "
        "between the tiers that a GET sets off, not the index."
    )
    if is_comparable:
        return (*policies, modelled)
    return (
        *policies,
        modelled,
        "This C library's rand is not glibc's: the published figures can not come out here.",
    )
