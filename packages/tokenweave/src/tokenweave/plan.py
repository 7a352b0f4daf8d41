"""The plan: a forward pass as data.

A plan is a list of steps, each on a lane, each naming the steps it waits for. It is built here and nowhere else
decides the order of work; executors are loops that know no model and no policy (docs/architecture.md).

Invariants
1. A step waits only for steps before it, so list order is always a legal order.
2. Every step's dependencies are edges of the data flow: nothing waits for a stage to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from tokenweave.errors import PlanError
from tokenweave.geometry import parts_of
from tokenweave.ops import Lane, Op, Operation

__all__ = ["NO_MOVES", "WEIGHT_ROOMS", "Lane", "Moves", "Op", "Operation", "Plan", "Step", "plan_forward"]


WEIGHT_ROOMS = 2  # for the weights of one layer each, where these are fetched: one is read, one is filled


@dataclass(frozen=True, slots=True)
class Moves:
    """Which bytes a pass moves between tiers of memory, layer by layer: keys and values, and weights."""

    evicts: bool = False  # blocks are written down, to make room for what the pass writes in their place
    fetches: bool = False  # blocks are read from a tier, for the pass to attend to
    stores: bool = False  # blocks are written down that are full, or that the pass fills
    fetches_weights: bool = False  # layers are read from a tier; layer l into room l % WEIGHT_ROOMS


NO_MOVES = Moves()


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of work.

    `norm` counts the norms of a forward pass from 0: the norm after the embedding is 0, after the attention of
    layer l it is 2l + 1, after its MLP 2l + 2; it is None where the step is no REDUCE_NORM. `layer` is None outside
    the layers. `part` says which part of the tokens the step works on (`Plan.parts`); None: what both parts left.
    `waits_for` holds positions in the plan.
    """

    op: Operation
    waits_for: tuple[int, ...] = ()
    layer: int | None = None
    norm: int | None = None
    part: int | None = 0

    @property
    def lane(self) -> Lane:
        return self.op.lane

    @property
    def name(self) -> str:
        """`attention[3]`, `reduce_norm[7]`, `embed`: the operation and the layer or norm it belongs to.

        The second part of a split batch is primed: `attention[3]'`.
        """
        index = self.layer if self.norm is None else self.norm
        return self.op.label + ("" if index is None else f"[{index}]") + ("'" if self.part == 1 else "")


@dataclass(frozen=True)
class Plan:
    """The steps of one forward pass over `num_tokens` tokens, in a legal order.

    `split`, where given, cuts the tokens in two parts: the rows before it and the rows from it on.
    """

    num_tokens: int
    steps: tuple[Step, ...]
    split: int | None = None

    def __post_init__(self) -> None:
        if self.split is not None and not 0 < self.split < self.num_tokens:
            raise PlanError(
                f"got split={self.split} of {self.num_tokens} tokens; expected 1 to {self.num_tokens - 1}, or None"
            )
        for position, step in enumerate(self.steps):
            late = [other for other in step.waits_for if not 0 <= other < position]
            if late:
                raise PlanError(
                    f"step {position} ({step.name}) waits for steps {late}; a step can wait only for steps before it"
                )
            if step.part is not None and step.part >= len(self.parts):
                raise PlanError(
                    f"step {position} ({step.name}) is of part {step.part}; the plan has {len(self.parts)} parts"
                )

    @property
    def parts(self) -> tuple[range, ...]:
        """The token rows of each part."""
        return parts_of(self.num_tokens, self.split)

    @cached_property
    def places(self) -> dict[Lane, tuple[int, ...]]:
        """The positions of each lane's steps, in the order in which it runs them; only of lanes that have any."""
        lanes = dict.fromkeys(step.lane for step in self.steps)
        return {lane: tuple(at for at, step in enumerate(self.steps) if step.lane is lane) for lane in lanes}

    @cached_property
    def threads(self) -> dict[Lane, tuple[int, ...]]:
        """`places`, with transfers among the compute lane's steps where these are one chain.

        Threads that take turns would only wake each other up.
        """
        turns = {Lane.COMPUTE, Lane.TRANSFER}
        chain = tuple(at for at, step in enumerate(self.steps) if step.lane in turns)
        if not all(before in self.steps[at].waits_for for before, at in pairwise(chain)):
            return self.places
        others = {lane: places for lane, places in self.places.items() if lane not in turns}
        return {Lane.COMPUTE: chain, **others}

    @cached_property
    def overlaps(self) -> bool:
        """Whether two of its steps may run at the same time: on different lanes, neither waiting for the other.

        Where there are any, two neighbours in the list are such. A plan without is a chain, which lanes cannot shorten.
        """
        return any(
            one.lane is not other.lane and at not in other.waits_for
            for at, (one, other) in enumerate(pairwise(self.steps))
        )

    @cached_property
    def ops(self) -> frozenset[Operation]:
        """The operations of its steps."""
        return frozenset(step.op for step in self.steps)

    @cached_property
    def num_layers(self) -> int:
        """How many layers its steps belong to."""
        return len({step.layer for step in self.steps} - {None})

    @cached_property
    def first_in_layers(self) -> int:
        """The position of the first step that belongs to a layer; 0 where none does."""
        return next((at for at, step in enumerate(self.steps) if step.layer is not None), 0)

    def on(self, lane: Lane) -> list[Step]:
        """The steps of one lane, in the order in which that lane runs them."""
        return [self.steps[at] for at in self.places.get(lane, ())]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        head = f"{'step':>4}  {'lane':8}  {'operation':18}  waits for"
        return [head] + [
            f"{position:>4}  {step.lane:8}  {step.name:18}  "
            + (", ".join(f"{other} {self.steps[other].name}" for other in step.waits_for) or "-")
            for position, step in enumerate(self.steps)
        ]


@lru_cache(maxsize=256)
def plan_forward(num_layers: int, num_tokens: int, split: int | None = None, moves: Moves = NO_MOVES) -> Plan:
    """The forward pass of a decoder with `num_layers` layers over `num_tokens` tokens, woven where `split` is given.

    Every norm belongs to the reduction before it (TokenWeave section 3: the next layer's input norm is fused into
    this layer's second reduction), so the norms of the model are the REDUCE_NORM steps of the plan.

    Woven, each stage runs on one part of the tokens and then on the other, so that the reduction of a part can run
    while the other part computes. The embedding, the last layer and the logits are woven like every other stage.

    Raises:
        PlanError: `num_layers` or `num_tokens` is less than 1, or `split` leaves a part empty.
    """
    if num_layers < 1 or num_tokens < 1:
        raise PlanError(
            f"got num_layers={num_layers}, num_tokens={num_tokens}; a plan needs at least 1 of each"
        )
    parts = (0,) if split is None else (0, 1)
    weaver = _Weaver(len(parts))
    for op, layer, norm in _stages(num_layers):
        if op is Op.ATTENTION:
            weaver.make_ready(layer, moves)
        if op is Op.LOGITS and moves.fetches_weights:  # every room is free
            weaver.steps.append(Step(Op.PREFETCH_WEIGHTS, weaver.done[-1], part=None))
        for part in parts:
            weaver.compute(op, layer, part)
            if norm is not None:
                weaver.add(Step(Op.REDUCE_NORM, (weaver.last[part],), layer, norm, part), part)
    if moves.stores:
        weaver.steps += [
            Step(Op.STORE, attended, layer, part=None) for layer, attended in enumerate(weaver.attended)
        ]
    weaver.steps.append(Step(Op.GATHER, tuple(weaver.last), part=None))
    return Plan(num_tokens, tuple(weaver.steps), split)


def _stages(num_layers: int) -> Iterator[tuple[Operation, int | None, int | None]]:
    """The computing stages of a forward pass: operation, layer, and the norm of the reduction that follows."""
    yield Op.EMBED, None, 0
    for layer in range(num_layers):
        yield Op.ATTENTION, layer, 2 * layer + 1
        yield Op.MLP, layer, 2 * layer + 2
    yield Op.LOGITS, None, None


class _Weaver:
    """Steps so far, and the position of each part's last one."""

    def __init__(self, num_parts: int) -> None:
        self.steps: list[Step] = []
        self.last = [-1] * num_parts
        self.attended: list[tuple[int, ...]] = []  # of each layer, where its parts' keys are written
        self.done: list[
            tuple[int, ...]
        ] = []  # of each layer, where its parts read its weights for the last time
        self._ready: tuple[int, ...] = ()  # where the weights and the cache of this layer are made ready

    def add(self, step: Step, part: int) -> None:
        self.last[part] = len(self.steps)
        self.steps.append(step)

    def make_ready(self, layer: int | None, moves: Moves) -> None:
        """Has a layer's weights and blocks fetched, and blocks evicted, as far as `moves` says, before it is computed.

        Weights go first: they begin to come when a room is free, but blocks of all layers when a pass begins.
        """
        weights: tuple[int, ...] = ()
        if moves.fetches_weights:
            lasts = self.done[-WEIGHT_ROOMS] if len(self.done) >= WEIGHT_ROOMS else ()
            weights = self._move(Op.FETCH_WEIGHTS, lasts, layer)
        self.attended.append(())
        self.done.append(())
        blocks: tuple[int, ...] = ()
        for op, is_needed in ((Op.EVICT, moves.evicts), (Op.FETCH, moves.fetches)):
            if is_needed:
                blocks = self._move(op, blocks, layer)
        self._ready = weights + blocks

    def _move(self, op: Operation, waits_for: tuple[int, ...], layer: int | None) -> tuple[int, ...]:
        self.steps.append(Step(op, waits_for, layer, part=None))
        return (len(self.steps) - 1,)

    def compute(self, op: Operation, layer: int | None, part: int) -> None:
        waits_for = {self.last[part]} - {-1}
        if op is not Op.ATTENTION:
            self.add(Step(op, tuple(waits_for), layer, part=part), part)
            if op is Op.MLP:
                self.done[-1] += (self.last[part],)
            return
        # A sequence may straddle the split: its second part sees the first's keys.
        waits_for.update(self._ready, self.attended[-1])
        self.add(Step(op, tuple(sorted(waits_for)), layer, part=part), part)
        self.attended[-1] += (self.last[part],)
