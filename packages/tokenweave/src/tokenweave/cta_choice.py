"""How many CTAs a reduction takes, by its number of tokens: chosen on paper, as a split is.

A whole batch's reduction hides behind nothing: the fastest number counts. A part's also takes SMs from what hides it:
numbers are compared in a woven batch of two such parts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenweave.cost import CostModel
from tokenweave.errors import TuneError
from tokenweave.geometry import BatchGeometry
from tokenweave.plan import plan_forward
from tokenweave.simulate import simulate
from tokenweave.split import LayerSample, extrapolate

if TYPE_CHECKING:
    from tokenweave.sm_sharing import CtaRows, SmSharing
    from tokenweave.wave_table import WaveTable

NEAR = (
    0.02  # of the best time: numbers of CTAs within it are alike, and the fewest leave the most SMs to others
)


def with_best_ctas(costs: CostModel) -> WaveTable:
    """The table of `costs` with the best CTAs at each number of tokens that reductions were timed at.

    Raises:
        TuneError: the table has no times by CTAs.
    """
    sharing = costs.table.sharing
    if sharing is None:
        raise TuneError("got a table without times by CTAs; expected one of a GPU")
    sizes = sorted({count for each in sharing.beside for count in each.reduce.tokens})
    whole = [(size, _fewest_near_best(_alone_s(sharing, size))) for size in sizes]
    woven = [(size, _fewest_near_best(_woven_s(costs, sharing, size))) for size in sizes]
    return costs.table.taking(_joined(whole), _joined(woven))


def _alone_s(sharing: SmSharing, size: int) -> dict[int, float]:
    """Seconds of a reduction of `size` tokens, by the number of CTAs."""
    return {each.num_ctas: each.reduce(size) for each in sharing.beside}


def _woven_s(costs: CostModel, sharing: SmSharing, size: int) -> dict[int, float]:
    """Seconds of a woven pass of two parts of `size` tokens, by the CTAs of their reductions."""
    return {
        ctas: _pass_s(
            replace(costs, table=costs.table.taking(sharing.whole, ((size, ctas),))), 2 * size, size
        )
        for ctas in (each.num_ctas for each in sharing.beside)
    }


def _pass_s(costs: CostModel, num_tokens: int, split: int) -> float:
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
