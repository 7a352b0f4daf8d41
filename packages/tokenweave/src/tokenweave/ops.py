"""Operations: the kinds of step that a plan has, one record each.

To add a kind of step: its record here, its place in `tokenweave.plan.plan_forward`, and a method of that name where the
plan is run (`interlace.models.decoder.Forward`). Nothing else lists operations: executors, the simulator, traces and
drawings read the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tokenweave.geometry import BatchGeometry
from tokenweave.phases import Phase, PricedStep, Resource

if TYPE_CHECKING:
    from tokenweave.wave_table import WaveTable


class Lane(StrEnum):
    """Where a step runs. Steps on different lanes may run at the same time."""

    COMPUTE = "compute"  # GEMMs and attention
    TRANSFER = "transfer"  # between ranks
    MEMORY = "memory"  # between tiers of memory


def _nothing(table: WaveTable, kind: int, begun: BatchGeometry, rest: BatchGeometry) -> float:
    return 0.0


def _rows_of_rest(begun: BatchGeometry, rest: BatchGeometry) -> int:
    return rest.num_tokens


def _on_core(step: PricedStep) -> tuple[Phase, ...]:
    return (Phase(Resource.CORE, step.core_s),)


@dataclass(frozen=True, slots=True)
class Price:
    """How long a step takes: seconds on the core, and how these and others follow one another.

    A step begins with some rows and goes on with the rest of them: in the last layer, with those whose logits are
    wanted. `rows` counts those that it computes. Which of the table's kinds its layer is of comes with the table.
    """

    core_s: Callable[[WaveTable, int, BatchGeometry, BatchGeometry], float] = _nothing
    rows: Callable[[BatchGeometry, BatchGeometry], int] = _rows_of_rest
    phases: Callable[[PricedStep], tuple[Phase, ...]] = _on_core


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A kind of step: all that there is to know of it. Two are the same only if they are one object."""

    label: str  # in the names of steps, in tables and in traces
    lane: Lane
    handler: str  # the method that runs it
    short: str  # the label where there is little room, in drawings
    price: Price

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<{self.label}>"


def _projected_and_attended_s(
    table: WaveTable, kind: int, begun: BatchGeometry, rest: BatchGeometry
) -> float:
    """Keys and values of all rows; queries' attention and the output projection of the rest."""
    projected_s = table.projections(begun.num_tokens)
    if rest is not begun:
        share = table.key.qkv_share
        projected_s = share * projected_s + (1 - share) * table.projections(rest.num_tokens)
    pairs = rest.pairs_seen(table.key.kinds[kind].window)
    return projected_s + table.kinds[kind].attention(rest.num_new, pairs)


def _reduction(step: PricedStep) -> tuple[Phase, ...]:
    """The core hands over the partial sum, the link carries what the reduce-scatter sends, the core adds and
    normalises, the link carries the all-gather."""
    if not step.num_rows:
        return ()
    link = Phase(Resource.LINK, step.link_s)
    phases = (Phase(Resource.CORE, step.handed_over_s), link, Phase(Resource.CORE, step.core_s), link)
    return phases if step.select_s is None else (*phases, Phase(Resource.LINK, step.select_s))


def _moved(step: PricedStep) -> tuple[Phase, ...]:
    """A core copies the bytes, and the tier's link carries them."""
    return step.moved


class _Records(type):
    """Makes a class that holds operations iterable, in the order in which they were added."""

    def __iter__(cls) -> Iterator[Operation]:
        return (each for each in vars(cls).values() if isinstance(each, Operation))


class Op(metaclass=_Records):
    """The operations of a decoder's forward pass."""

    # Rows of this rank's part of the vocabulary.
    EMBED = Operation(
        "embed", Lane.COMPUTE, "embed", "emb",
        Price(lambda table, kind, begun, rest: table.embed(begun.num_tokens), lambda begun, rest: begun.num_tokens),
    )  # fmt: skip
    # This rank's heads, up to the partial sum of the output projection.
    ATTENTION = Operation(
        "attention", Lane.COMPUTE, "attention", "attn",
        Price(_projected_and_attended_s, lambda begun, rest: begun.num_tokens),
    )  # fmt: skip
    # This rank's part of the MLP or of the experts, up to the partial sum.
    MLP = Operation(
        "mlp", Lane.COMPUTE, "mlp", "mlp",
        Price(lambda table, kind, begun, rest: table.kinds[kind].mlp(rest.num_tokens)),
    )  # fmt: skip
    # All-reduce, residual add and RMSNorm of what the step before it left.
    REDUCE_NORM = Operation(
        "reduce_norm", Lane.TRANSFER, "reduce_norm", "rn",
        Price(lambda table, kind, begun, rest: table.reduce(rest.num_tokens), phases=_reduction),
    )  # fmt: skip
    # This rank's part of the vocabulary.
    LOGITS = Operation(
        "logits", Lane.COMPUTE, "output_head", "log",
        Price(
            lambda table, kind, begun, rest: table.logits(len(begun.logit_rows)),
            lambda begun, rest: len(begun.logit_rows),
        ),
    )  # fmt: skip
    # The ranks' logits, joined on rank 0: too little to price.
    GATHER = Operation("gather", Lane.TRANSFER, "gather", "gat", Price())
    # One layer of the blocks that have to leave local memory, or a tier, before the pass writes in their place.
    EVICT = Operation("evict", Lane.MEMORY, "evict", "ev", Price(phases=_moved))
    # One layer of the blocks that a tier has and the pass attends to.
    FETCH = Operation("fetch", Lane.MEMORY, "fetch", "fe", Price(phases=_moved))
    # One layer's weights, from a tier to the room for them in local memory.
    FETCH_WEIGHTS = Operation("fetch_weights", Lane.MEMORY, "fetch_weights", "fw", Price(phases=_moved))
    # The first layers of the next pass begin to come, and nothing waits for them here: too little to price.
    PREFETCH_WEIGHTS = Operation("prefetch_weights", Lane.MEMORY, "prefetch_weights", "pw", Price())
    # One layer of the blocks that are full, to a tier.
    STORE = Operation("store", Lane.MEMORY, "store", "st", Price(phases=_moved))

    @classmethod
    def named(cls, label: str) -> Operation:
        """Raises ValueError where no operation has that label."""
        for op in cls:
            if op.label == label:
                return op
        raise ValueError(f"no operation is called {label!r}")
