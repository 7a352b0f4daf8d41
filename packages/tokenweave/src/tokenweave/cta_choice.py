"""How many CTAs a reduction takes, by its number of tokens: chosen on paper, as a split is.

A reduction of `n` tokens comes in a batch of `n` that is whole, where it hides behind nothing, or in a woven one of
`2 n`, where its CTAs also take SMs from what hides it. The numbers of CTAs are compared in the woven batch if weaving
pays there, and otherwise by the time of the reduction alone.
"""

from __future__ import annotations

from dataclasses import replace

from tokenweave.cost import CostModel
from tokenweave.errors import TuneError
from tokenweave.geometry import BatchGeometry
from tokenweave.plan import plan_forward
from tokenweave.simulate import simulate
from tokenweave.sm_sharing import BesideCtas, CtaRows
from tokenweave.split import GUARD, LayerSample, extrapolate

NEAR = (
    0.02  # of the best time: numbers of CTAs within it are alike, and the fewest leave the most SMs to others
)


def choose_ctas(costs: CostModel, guard: float = GUARD) -> CtaRows:
    """The CTAs of each number of tokens that reductions were timed at, as in `SmSharing.ctas`.

    Raises:
        TuneError: the table of `costs` has no times by CTAs.
    """
    sharing = costs.table.sharing
    if sharing is None:
        raise TuneError("got a table without times by CTAs; expected one of a GPU")
    sizes = sorted({count for each in sharing.beside for count in each.reduce.tokens})
    return _joined([(size, _fewest_near_best(_times(costs, sharing.beside, size, guard))) for size in sizes])


def _times(costs: CostModel, beside: tuple[BesideCtas, ...], size: int, guard: float) -> dict[int, float]:
    """The times to compare for reductions of `size` tokens, by the number of CTAs."""
    always = {
        each.num_ctas: replace(costs, table=costs.table.taking(((size, each.num_ctas),))) for each in beside
    }
    whole_s = min(_pass_s(each, 2 * size, None) for each in always.values())
    woven_s = {num_ctas: _pass_s(each, 2 * size, size) for num_ctas, each in always.items()}
    if min(woven_s.values()) < whole_s * (1 - guard):
        return woven_s
    return {each.num_ctas: each.reduce(size) for each in beside}


def _pass_s(costs: CostModel, num_tokens: int, split: int | None) -> float:
    """The modelled time of a pass over one sequence from its start."""
    sample = LayerSample.of(costs.layers or (0, 0, 0))
    plan, load = plan_forward(len(sample.kinds), num_tokens, split), BatchGeometry.prefill(num_tokens)
    priced = replace(costs, layers=sample.kinds).cost_of(plan, load)
    timeline = simulate(plan, priced, shared_core=False, issue_s=costs.table.host.issue_s)
    return extrapolate(timeline, sample)


def _fewest_near_best(times: dict[int, float]) -> int:
    best_s = min(times.values())
    return min(num_ctas for num_ctas, seconds in times.items() if seconds <= best_s * (1 + NEAR))


def _joined(rows: list[tuple[int, int]]) -> CtaRows:
    """Of neighbours with one number of CTAs the last: it holds for fewer tokens too."""
    following = [*rows[1:], (0, 0)]
    return tuple(row for row, after in zip(rows, following, strict=True) if row[1] != after[1])
