"""The plan: a forward pass as data.

A plan is a list of steps, each on a lane, each naming the steps it waits for. It is built here and nowhere else
decides the order of work; executors are loops that know no model and no policy (docs/architecture.md).

Invariants
1. A step waits only for steps before it, so list order is always a legal order.
2. Every step's dependencies are edges of the data flow: nothing waits for a stage to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from tokenweave.errors import PlanError


class Lane(StrEnum):
    """Where a step runs. Steps on different lanes may run at the same time."""

    COMPUTE = "compute"  # GEMMs and attention
    TRANSFER = "transfer"  # between ranks
    MEMORY = "memory"  # between tiers of memory


class Op(StrEnum):
    """What a step does."""

    EMBED = "embed"  # rows of this rank's part of the vocabulary
    ATTENTION = "attention"  # this rank's heads, up to the partial sum of the output projection
    MLP = "mlp"  # this rank's part of the MLP or of the experts, up to the partial sum
    REDUCE_NORM = "reduce_norm"  # all-reduce + residual add + RMSNorm of what the step before it left
    LOGITS = "logits"  # this rank's part of the vocabulary
    GATHER = "gather"  # the ranks' logits, joined on rank 0


LANE_OF: dict[Op, Lane] = {
    Op.EMBED: Lane.COMPUTE,
    Op.ATTENTION: Lane.COMPUTE,
    Op.MLP: Lane.COMPUTE,
    Op.REDUCE_NORM: Lane.TRANSFER,
    Op.LOGITS: Lane.COMPUTE,
    Op.GATHER: Lane.TRANSFER,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of work.

    `norm` counts the norms of a forward pass from 0: the norm after the embedding is 0, after the attention of
    layer l it is 2l + 1, after its MLP 2l + 2; it is None where the step is no REDUCE_NORM. `layer` is None outside
    the layers. `waits_for` holds positions in the plan.
    """

    op: Op
    waits_for: tuple[int, ...] = ()
    layer: int | None = None
    norm: int | None = None

    @property
    def lane(self) -> Lane:
        return LANE_OF[self.op]

    @property
    def name(self) -> str:
        """`attention[3]`, `reduce_norm[7]`, `embed`: the operation and the layer or norm it belongs to."""
        index = self.norm if self.op is Op.REDUCE_NORM else self.layer
        return self.op.value if index is None else f"{self.op.value}[{index}]"


@dataclass(frozen=True)
class Plan:
    """The steps of one forward pass over `num_tokens` tokens, in a legal order."""

    num_tokens: int
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for position, step in enumerate(self.steps):
            late = [other for other in step.waits_for if not 0 <= other < position]
            if late:
                raise PlanError(
                    f"step {position} ({step.name}) waits for steps {late}; a step can wait only for steps before it"
                )

    def on(self, lane: Lane) -> list[Step]:
        """The steps of one lane, in the order in which that lane runs them."""
        return [step for step in self.steps if step.lane is lane]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        head = f"{'step':>4}  {'lane':8}  {'operation':18}  waits for"
        return [head] + [
            f"{position:>4}  {step.lane:8}  {step.name:18}  "
            + (", ".join(f"{other} {self.steps[other].name}" for other in step.waits_for) or "-")
            for position, step in enumerate(self.steps)
        ]


@lru_cache(maxsize=64)
def plan_forward(num_layers: int, num_tokens: int) -> Plan:
    """The forward pass of a decoder with `num_layers` layers over `num_tokens` tokens, not split.

    Every norm belongs to the reduction before it (TokenWeave section 3: the next layer's input norm is fused into
    this layer's second reduction), so the norms of the model are the REDUCE_NORM steps of the plan.

    Raises:
        PlanError: `num_layers` or `num_tokens` is less than 1.
    """
    if num_layers < 1 or num_tokens < 1:
        raise PlanError(
            f"got num_layers={num_layers}, num_tokens={num_tokens}; a plan needs at least 1 of each"
        )
    steps: list[Step] = []

    def then(op: Op, *, layer: int | None = None, norm: int | None = None) -> None:
        after_last = (len(steps) - 1,) if steps else ()
        steps.append(Step(op, after_last, layer, norm))

    then(Op.EMBED)
    then(Op.REDUCE_NORM, norm=0)
    for layer in range(num_layers):
        then(Op.ATTENTION, layer=layer)
        then(Op.REDUCE_NORM, layer=layer, norm=2 * layer + 1)
        then(Op.MLP, layer=layer)
        then(Op.REDUCE_NORM, layer=layer, norm=2 * layer + 2)
    then(Op.LOGITS)
    then(Op.GATHER)
    return Plan(num_tokens, tuple(steps))
