"""FetchPlanner: rank 0's decision how much of a prompt is fetched from tiers and how much is computed anew.

Each way is priced by the simulator, from the same prices as splits are, and from what the tiers take: modelled ones
what their timing says, others what this machine was measured to copy. Where one way is far ahead that is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from interlace.engine.cache.fetching import Answer, Question
from interlace.engine.weaving.weaver import costs_of, lanes_share_cores
from tokenweave.cost import NOTHING_MOVED, CostModel, Moved
from tokenweave.geometry import BatchGeometry
from tokenweave.kernels import BLOCK_SIZE
from tokenweave.ops import Op
from tokenweave.phases import Phase, Resource
from tokenweave.plan import NO_MOVES, Moves, plan_forward
from tokenweave.simulate import simulate
from tokenweave.split import LayerSample, extrapolate

if TYPE_CHECKING:
    from emucxl.timing import Timing
    from interlace.cache.kv_tier import KvTierSpec
    from interlace.engine.cache.tier_mover import TierMover
    from interlace.engine.ranks.runner import Runner

COPY_S_PER_BYTE = 1 / 8e9  # of a core, where a tier's timing hides what this machine takes
FAR = 8.0  # where one way takes so many times what the other does, it is not a close call
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the blocks, computed in front: tried beside those about the balance
MAX_DECISIONS = 4096


@dataclass(frozen=True, slots=True)
class TierSpeed:
    """The time of fetching from a tier: a core copies the bytes while the tier's link, if it has one, carries them."""

    core_s_per_byte: float
    link_s_per_byte: float = 0.0
    latency_s: float = 0.0

    @classmethod
    def modelled(cls, timing: Timing) -> TierSpeed:
        """The speed that `timing` says."""
        gbps = timing.read_bandwidth_gbps
        return cls(COPY_S_PER_BYTE, 1e-9 / gbps if gbps else 0.0, timing.total_read_latency_ns * 1e-9)

    def phases(self, size_bytes: float) -> tuple[Phase, ...]:
        """Those of one layer's bytes. A link is longer under way than a core by what the core does not hide."""
        core_s = size_bytes * self.core_s_per_byte
        link_s = max(0.0, size_bytes * self.link_s_per_byte + self.latency_s - core_s)
        return Phase(Resource.CORE, core_s), Phase(Resource.LINK, link_s)

    def seconds(self, size_bytes: float) -> float:
        """Of one layer's bytes."""
        return sum(phase.seconds for phase in self.phases(size_bytes))


def speed_of(spec: KvTierSpec, mover: TierMover, place: int) -> TierSpeed:
    """The speed of a tier: as its timing says, or as it is measured now."""
    if spec.timing is None:
        return TierSpeed(mover.measure_fetch_s(place))
    return TierSpeed.modelled(spec.timing)


class FetchPlanner:
    """Answers how much to fetch.

    Thread safety: one caller at a time.
    """

    def __init__(
        self, costs: CostModel, speeds: Sequence[TierSpeed], layer_bytes: float, *, shared_core: bool
    ) -> None:
        """`costs` are of a model's layers, of which one has `layer_bytes` of keys and values in a block."""
        self._num_layers = len(costs.layers)
        self._sample = LayerSample.of(costs.layers)
        self._costs = replace(costs, layers=self._sample.kinds)
        self._speeds, self._layer_bytes, self._shared_core = tuple(speeds), layer_bytes, shared_core
        self._decisions: dict[tuple[int, ...], Answer] = {}

    @classmethod
    def of(cls, runner: Runner) -> FetchPlanner | None:
        """That of rank 0's `runner`, which has not run yet; None where it has no tiers."""
        mover = runner.mover
        if mover is None:
            return None
        speeds = [speed_of(spec, mover, place) for place, spec in enumerate(mover.specs, 1)]
        costs = costs_of(runner)
        layer_bytes = mover.block_bytes / len(costs.layers)
        return cls(costs, speeds, layer_bytes, shared_core=lanes_share_cores(runner))

    def __call__(self, question: Question) -> Answer:
        """The way that is predicted to have the prompt's first token first. Kept for prompts alike."""
        kind = self._kind(question)
        if kind not in self._decisions:
            if len(self._decisions) >= MAX_DECISIONS:
                self._decisions.clear()
            self._decisions[kind] = self._choose(question)
        return self._decisions[kind]

    def that_never_pay(self, max_model_len: int, budget: int) -> list[int]:
        """The tiers of which not even the longest prompt would have a block fetched: to compute all is faster."""
        end = max(2 * BLOCK_SIZE, max_model_len - 1)
        num_found = (end - 1) // BLOCK_SIZE
        longest = Question((), 0, 0, (), num_found * BLOCK_SIZE, end, budget)
        return [
            tier
            for tier in range(len(self._speeds))
            if not self._choose(longest._replace(tiers=(tier,) * num_found)).num_fetched
        ]

    def fetch_s(self, tiers: Sequence[int]) -> float:
        """Seconds of fetching blocks of these tiers, with nothing beside it."""
        return self._num_layers * sum(phase.seconds for phase in self._phases(tiers))

    def compute_s(self, question: Question, num_front: int) -> float:
        """Seconds of the passes that compute `num_front` blocks in front, and what is behind the blocks."""
        total_s, left = 0.0, question.num_before + num_front * BLOCK_SIZE
        keys, budget, others = question.num_keys, question.budget, question.others
        while left > budget:
            total_s += self._pass_s(_load(others, [(budget, keys + budget)]))
            keys, left, others = keys + budget, left - budget, ()
        rest = min(question.end - question.behind, max(1, budget - left))
        return total_s + self._pass_s(_load(others, [(left, keys + left), (rest, question.behind + rest)]))

    def _choose(self, question: Question) -> Answer:
        num_found = len(question.tiers)
        fetch_s = self.fetch_s(question.tiers)
        none_s, all_s = self.compute_s(question, 0), self.compute_s(question, num_found)
        computed_s = max(1e-9, all_s - none_s)
        if fetch_s * FAR <= computed_s:
            return Answer(num_found)
        if fetch_s >= none_s + FAR * computed_s:
            return Answer(0)
        # The front is as long as it takes to fetch the rest beside it, and beside what is computed anyway.
        balance = (fetch_s - none_s) / (fetch_s + computed_s)
        if balance * num_found > question.most_in_front:
            return self._fetch_beside(question, fetch_s / num_found)
        shares = {*SHARES, *(balance + offset for offset in (-0.06, -0.03, 0.0, 0.03, 0.06))}
        fronts = {round(share * num_found) for share in shares if 0 <= share <= 1}
        priced = {front: self._price(question, front) for front in fronts if front <= question.most_in_front}
        priced[num_found] = all_s
        best = min(priced, key=lambda front: (priced[front], front))
        return Answer(num_found - best)

    def _fetch_beside(self, question: Question, block_s: float) -> Answer:
        """A pass that is full of rows in front, and what can be fetched from the back while it runs."""
        left = len(question.tiers) - (question.budget - question.num_before) // BLOCK_SIZE
        return Answer(max(0, min(int(self._pass_s_of_front(question) / block_s), left)))

    def _pass_s_of_front(self, question: Question) -> float:
        """Seconds of a pass that has all the rows in front that it may."""
        rows = (question.budget, question.num_keys + question.budget)
        return self._pass_s(_load(question.others, [rows]))

    def _price(self, question: Question, num_front: int) -> float:
        """Seconds of the pass that computes the front and fetches the rest."""
        before = question.num_before + num_front * BLOCK_SIZE
        rest = min(question.end - question.behind, question.budget - before)
        rows = [(before, question.num_keys + before), (rest, question.behind + rest)]
        fetched = question.tiers[num_front:]
        return self._pass_s(_load(question.others, rows), self._moved(fetched))

    def _pass_s(self, load: BatchGeometry, moved: Moved = NOTHING_MOVED) -> float:
        moves = Moves(fetches=True) if moved else NO_MOVES
        plan = plan_forward(len(self._sample.kinds), load.num_tokens, None, moves)
        cost = self._costs.cost_of(plan, load, moved)
        return extrapolate(simulate(plan, cost, shared_core=self._shared_core), self._sample)

    def _moved(self, tiers: Sequence[int]) -> Moved:
        return {Op.FETCH: self._phases(tiers)} if tiers else NOTHING_MOVED

    def _phases(self, tiers: Sequence[int]) -> tuple[Phase, ...]:
        """Those of one layer of blocks of these tiers."""
        counts = np.bincount(tiers, minlength=len(self._speeds)) if len(tiers) else ()
        return tuple(
            phase
            for speed, count in zip(self._speeds, counts, strict=False)
            if count
            for phase in speed.phases(int(count) * self._layer_bytes)
        )

    def _kind(self, question: Question) -> tuple[int, ...]:
        """Questions of a kind share a decision: as many blocks to the block, and about as much beside them."""
        others = sum(new for new, _ in question.others).bit_length()
        keys = sum(keys for _, keys in question.others).bit_length()
        slowest = max(question.tiers)
        rest = min(question.end - question.behind, question.budget)
        return (
            len(question.tiers), question.tiers.count(slowest), slowest, question.num_before,
            question.num_keys // 64, rest // 16, question.budget, others, keys,
        )  # fmt: skip


def _load(others: Sequence[tuple[int, int]], rows: Sequence[tuple[int, int]]) -> BatchGeometry:
    """The batch of `others` and of one prompt's rows: new tokens and keys of each. Each has one row of logits."""
    shapes = [*others, *((new, keys) for new, keys in rows if new)]
    starts = np.zeros(len(shapes) + 1, dtype=np.int32)
    np.cumsum([new for new, _ in shapes], out=starts[1:])
    wanted = np.array([*starts[1 : len(others) + 1], starts[-1]], dtype=np.int32) - 1
    return BatchGeometry(starts, np.array([keys for _, keys in shapes], dtype=np.int32), wanted)
