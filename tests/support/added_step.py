"""PEEK: an operation that the product does not have.

It is added as CONTRIBUTING tells: its record, its place in the plan, and a method `peek` of whoever runs the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tokenweave.ops import Lane, Op, Operation, Price
from tokenweave.phases import Phase, Resource
from tokenweave.plan import NO_MOVES, Moves, Plan, Step, plan_forward

PEEK_S = 1e-3
PEEK = Operation(
    "peek", Lane.MEMORY, "peek", "pek", Price(phases=lambda step: (Phase(Resource.LINK, PEEK_S),))
)


def plan_with_peek(
    num_layers: int, num_tokens: int, split: int | None = None, moves: Moves = NO_MOVES
) -> Plan:
    """A forward pass in which each layer's first attention waits for a peek, and a peek for nothing."""
    steps: list[Step] = []
    moved: dict[int, int] = {}
    for position, step in enumerate(plan_forward(num_layers, num_tokens, split, moves).steps):
        waits_for = tuple(moved[other] for other in step.waits_for)
        if step.op is Op.ATTENTION and step.part == 0:
            waits_for = (*waits_for, len(steps))
            steps.append(Step(PEEK, layer=step.layer))
        moved[position] = len(steps)
        steps.append(Step(step.op, waits_for, step.layer, step.norm, step.part))
    return Plan(num_tokens, tuple(steps), split)


@contextmanager
def peek_is_added() -> Iterator[None]:
    """Among the operations there are is PEEK."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Op, "PEEK", PEEK, raising=False)
        yield
