"""The split: where to cut a batch's tokens in two, and whether to. Pure functions over prices (TokenWeave, 3.1).

The paper splits at the middle, corrected by a table with seven keys, and weaves every batch of 1024 tokens or more.
Here each candidate's plan is run on paper, and so is the plan that is not woven; a batch is woven only where that is
predicted to pay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tokenweave.errors import PlanError
from tokenweave.plan import Lane, Plan
from tokenweave.simulate import Cost, Timeline, simulate

GUARD = 0.03  # the gain below which a batch is left whole: what a prediction may be wrong by (docs/weaving/split.md)
NEAR_STEPS = 3  # candidates on each side of the middle
FAR_SHARES = (1 / 4, 1 / 3, 2 / 5, 3 / 5, 2 / 3, 3 / 4)  # of the tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """Where to split (None: nowhere), and the modelled times of the chosen plan and of the one that is not split."""

    split: int | None
    predicted_s: float
    unsplit_s: float

    @property
    def gain(self) -> float:
        """The share of the time that weaving saves."""
        return 0.0 if self.unsplit_s <= 0 else 1 - self.predicted_s / self.unsplit_s


@dataclass(frozen=True, slots=True)
class LayerSample:
    """A few of a model's layers, which stand for all of them."""

    kinds: tuple[int, ...]  # of each layer of the sample
    counts: tuple[int, ...]  # how many of the model's layers each stands for

    @classmethod
    def of(cls, layers: Sequence[int]) -> LayerSample:
        """The first layer, the last, and of each kind between them one: `layers` has the kind of each of all."""
        between = Counter(layers[1:-1])  # in the order in which they first come
        first, last = layers[:1], layers[1:][-1:]  # a single layer is the first
        return cls((*first, *between, *last), (*(1 for _ in first), *between.values(), *(1 for _ in last)))


def alignment_of(row_tile: int, size: int) -> int:
    """Rows that a first part is a multiple of: whole tiles of the matrix products, and as many rows for each rank."""
    if row_tile < 1 or size < 1:
        raise PlanError(f"got row_tile={row_tile}, size={size}; expected at least 1 of each")
    return row_tile * size


def gpu_alignment_of(row_tile: int, size: int) -> int:
    """The same on GPUs, where a tile is tall: whole tiles, and rows for each rank, but no tiles for each rank.

    Ranks share rows out evenly however many there are.
    """
    return math.lcm(row_tile, alignment_of(1, size))


def middle(num_tokens: int, alignment: int) -> int | None:
    """The aligned split nearest to the middle; for too few tokens to align, the middle; None for a single token."""
    _check(num_tokens, alignment)
    if num_tokens < 2:
        return None
    aligned = round(num_tokens / 2 / alignment) * alignment
    return aligned if 0 < aligned < num_tokens else num_tokens // 2


def candidates(num_tokens: int, alignment: int) -> tuple[int, ...]:
    """Splits worth a price, ascending: around the middle step by step, and a few far from it.

    All are aligned, unless there are too few tokens for that.
    """
    centre = middle(num_tokens, alignment)
    if centre is None:
        return ()
    step = max(1, round(num_tokens / 48 / alignment)) * alignment
    near = (centre + step * offset for offset in range(-NEAR_STEPS, NEAR_STEPS + 1))
    far = (round(num_tokens * share / alignment) * alignment for share in FAR_SHARES)
    return tuple(sorted({split for split in (*near, *far) if 0 < split < num_tokens} | {centre}))


def choose_split(
    plan_of: Callable[[int | None], Plan],
    cost_of: Callable[[int | None], Cost],
    candidates: Iterable[int],
    *,
    shared_core: bool,
    guard: float = GUARD,
    sample: LayerSample | None = None,
    issue_s: float = 0.0,
) -> Choice:
    """The candidate whose plan is predicted to end first, if that gains more than `guard`; otherwise no split.

    `guard` is a share of the time without a split. With a `sample`, the plans have its layers only: see `extrapolate`.
    `shared_core`, `issue_s`: as for `simulate`. Of candidates that are equally good the first wins.
    """

    def price(split: int | None) -> float:
        timeline = simulate(plan_of(split), cost_of(split), shared_core=shared_core, issue_s=issue_s)
        return timeline.total_s if sample is None else extrapolate(timeline, sample)

    unsplit_s = price(None)
    best: int | None = None
    best_s = unsplit_s
    for split in candidates:
        seconds = price(split)
        if seconds < best_s and seconds < unsplit_s * (1 - guard):
            best, best_s = split, seconds
    return Choice(best, best_s, unsplit_s)


def extrapolate(timeline: Timeline, sample: LayerSample) -> float:
    """Returns the time of the whole plan, of which `timeline`'s has the layers of `sample`.

    Each layer that was left out takes as long as the one that stands for it, from the end of the layer before that.
    (The first layer finds an empty pipeline, and the last has less to do: these stand for themselves.)

    Raises:
        PlanError: the plan of `timeline` has another number of layers.
    """
    ends: dict[int, float] = {}
    for interval in timeline.intervals:
        if interval.step.lane is Lane.COMPUTE and interval.step.layer is not None:
            ends[interval.step.layer] = interval.end_s  # a lane runs its steps in order: the last one ends it
    if len(ends) != len(sample.kinds):
        raise PlanError(f"got a plan of {len(ends)} layers; expected the {len(sample.kinds)} of the sample")
    left_out = ((layer, count - 1) for layer, count in enumerate(sample.counts) if count > 1)
    return timeline.total_s + sum(count * (ends[layer] - ends[layer - 1]) for layer, count in left_out)


def _check(num_tokens: int, alignment: int) -> None:
    if num_tokens < 1 or alignment < 1:
        raise PlanError(f"got num_tokens={num_tokens}, alignment={alignment}; expected at least 1 of each")
