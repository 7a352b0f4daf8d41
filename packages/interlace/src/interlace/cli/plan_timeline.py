"""The timeline of the plan of `interlace plan show`, and what its pass would take otherwise: *modelled*."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from interlace.cli.plan_costs import PlanCosts
from interlace.cli.plan_moves import PlanMoves
from interlace.cli.timeline import draw
from tokenweave.plan import NO_MOVES, Lane, Moves, Op, Operation, Plan, plan_forward
from tokenweave.simulate import Interval, Timeline


@dataclass(frozen=True)
class PlanTimelines:
    """The timeline of `plan`, and those of plans that it is compared with.

    A pass does not wait for its stores: it ends before them where they take longer.
    """

    plan: Plan
    moved: Moves  # by it
    costs: PlanCosts
    moves: PlanMoves  # of them, those of blocks

    @cached_property
    def own(self) -> Timeline:
        return self._timeline(self.plan.split, self.moved)

    @cached_property
    def without_moves_s(self) -> float:
        """The same pass, with what is fetched in local memory already."""
        return self._timeline(self.plan.split, NO_MOVES).total_s

    @cached_property
    def computed_anew_s(self) -> float:
        """A pass that computes the tokens that are fetched too, and is not split."""
        num_tokens = self.moves.num_fetched_tokens + self.plan.num_tokens
        moved = Moves(fetches_weights=self.moved.fetches_weights)
        return self.costs.timeline(plan_forward(self.plan.num_layers, num_tokens, None, moved)).total_s

    def lines(self, every_layer: bool) -> Iterator[str]:
        yield f"\ntimeline, modelled: {self.costs.text}"
        if self.moves.tier is not None:
            yield self.moves.text
        yield _figures(self.plan.split, self.own)
        if self.plan.split is not None:
            yield _figures(None, self._timeline(None, self.moved))
        if self._moved:
            yield from self._lines_of_moves()
        yield from draw(self.own, every_layer)

    def to_json(self) -> dict[str, Any]:
        """The figures that are printed, in seconds."""
        own = self.own
        return {
            "costs": self.costs.text,
            "tier": None if self.moves.tier is None else self.moves.text,
            "total_s": own.total_s,
            "pass_s": pass_s(own),
            "without_moves_s": self.without_moves_s if self._moved else None,
            "computed_anew_s": self.computed_anew_s if self.moves.num_fetched else None,
            "compute_s": own.busy_s[Lane.COMPUTE],
            "communication_s": own.busy_s[Lane.TRANSFER],
            "memory_s": own.busy_s[Lane.MEMORY],
            "blocked_s": own.blocked_s,
            "hidden_fraction": own.hidden_fraction(Lane.TRANSFER),
            "memory_hidden_fraction": own.hidden_fraction(Lane.MEMORY),
            "moves": [
                {
                    "operation": op.label,
                    "num_blocks": self.moves.blocks_of(op),
                    "busy_s": sum(each.busy_s for each in steps),
                    "hidden_s": sum(each.hidden_s for each in steps),
                }
                for op, steps in self._moved.items()
            ],
        }

    def _lines_of_moves(self) -> Iterator[str]:
        """Of each kind of move, how much is hidden; and what the pass takes without them."""
        own = self.own
        told = (
            f"{op.label} {_ms(_busy(steps))}, of which {_hidden(steps)} hidden"
            for op, steps in self._moved.items()
        )
        yield f"memory lane: {'; '.join(told)}"
        compared = f"the pass: {_ms(pass_s(own))}; without moving anything {_ms(self.without_moves_s)}"
        if self.moves.num_fetched:
            compared += f"; with the fetched tokens computed instead {_ms(self.computed_anew_s)}"
        yield compared
        if own.total_s > pass_s(own):
            yield f"stores end {_ms(own.total_s - pass_s(own))} after the pass, which does not wait for them"

    @cached_property
    def _moved(self) -> dict[Operation, list[Interval]]:
        """The steps of the memory lane that take any time, by operation."""
        found: dict[Operation, list[Interval]] = {}
        for each in self.own.intervals:
            if each.step.lane is Lane.MEMORY and each.busy_s > 0:
                found.setdefault(each.step.op, []).append(each)
        return found

    def _timeline(self, split: int | None, moves: Moves) -> Timeline:
        plan = plan_forward(self.plan.num_layers, self.plan.num_tokens, split, moves)
        return self.costs.timeline(plan, self.moves.num_fetched_tokens)


def pass_s(timeline: Timeline) -> float:
    """Seconds until all but the stores have ended."""
    return max((each.end_s for each in timeline.intervals if each.step.op is not Op.STORE), default=0.0)


def _figures(split: int | None, timeline: Timeline) -> str:
    where = "not split" if split is None else f"split at {split}"
    taken_s, compute_s = pass_s(timeline), timeline.busy_s[Lane.COMPUTE]
    return (
        f"{where}: {_ms(taken_s)}; compute lane busy {1e3 * compute_s:,.1f}, "
        f"blocked {1e3 * (taken_s - compute_s):,.1f}; communication {1e3 * timeline.busy_s[Lane.TRANSFER]:,.1f}, "
        f"of which {timeline.hidden_fraction(Lane.TRANSFER):.0%} hidden"
    )


def _busy(steps: list[Interval]) -> float:
    return sum(each.busy_s for each in steps)


def _hidden(steps: list[Interval]) -> str:
    return f"{sum(each.hidden_s for each in steps) / _busy(steps):.0%}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"
