"""How many CTAs a reduction takes, on tables whose best numbers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.wave_tables import gpu_table, linear_table
from tokenweave.cost import CostModel
from tokenweave.cta_choice import choose_ctas
from tokenweave.curves import AttentionTimes, Curve
from tokenweave.errors import TuneError
from tokenweave.kernels.cuda.sharing import CtaTable
from tokenweave.sm_sharing import BesideCtas, SmSharing
from tokenweave.wave_table import KindTimes, WaveTable

LAYERS = (0,) * 30
FREE = {2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0}  # products that lose nothing to CTAs


def chosen(reduce_us: dict[int, float], slow_down: dict[int, float]) -> dict[int, int]:
    """The CTAs of reductions of 128 and of 4096 tokens."""
    table = CtaTable(choose_ctas(CostModel(gpu_table(reduce_us, slow_down), layers=LAYERS)))
    return {size: table.of(size) for size in (128, 4096)}


def test_where_nothing_is_woven_the_fastest_reduction_counts() -> None:
    """Products beside CTAs take so much longer that weaving never pays."""
    slow = dict.fromkeys(FREE, 3.0)
    assert chosen({2: 4.0, 4: 2.0, 8: 1.0, 16: 1.2}, slow) == {128: 8, 4096: 8}


def test_numbers_that_are_as_fast_leave_the_sms_to_others() -> None:
    slow = dict.fromkeys(FREE, 3.0)
    assert chosen({2: 4.0, 4: 1.01, 8: 1.0, 16: 1.0}, slow) == {128: 4, 4096: 4}


def test_a_woven_reduction_takes_no_more_than_it_needs_to_hide() -> None:
    """A token's layer computes for 20 us: two CTAs reduce it, twice, in 8 us and take the least from the products."""
    assert chosen({2: 4.0, 4: 3.0, 8: 2.0, 16: 2.0}, {2: 1.01, 4: 1.04, 8: 1.1, 16: 1.2}) == {128: 2, 4096: 2}


def test_a_reduction_that_would_not_hide_takes_more() -> None:
    """Two CTAs would take 120 us a token; a layer computes for 40, attention to thousands of keys included."""
    assert chosen({2: 60.0, 4: 30.0, 8: 10.0, 16: 9.9}, {2: 1.0, 4: 1.0, 8: 1.01, 16: 1.2})[4096] == 8


def test_sizes_with_different_best_numbers_are_told_apart() -> None:
    table = gpu_table(dict.fromkeys((2, 8), 1.0), dict.fromkeys((2, 8), 3.0))
    assert table.sharing is not None
    two, eight = table.sharing.beside
    beside = (
        replace(two, reduce=Curve((16, 64, 1024, 4096), (1e-6, 2e-6, 40e-6, 160e-6))),
        replace(eight, reduce=Curve((16, 64, 1024, 4096), (2e-6, 3e-6, 10e-6, 40e-6))),
    )
    table = replace(table, sharing=SmSharing(132, beside, ((1, 2),)))
    assert choose_ctas(CostModel(table, layers=LAYERS)) == ((64, 2), (4096, 8))


PUBLISHED_TOKENS = (256, 1024, 4096, 16384)
PUBLISHED_US = {  # the fused operation of so many tokens, by CTAs: TokenWeave, figure 10, 8 H100, hidden size 8192
    2: (61.248, 207.808, 792.832, 3125.376),
    4: (41.984, 128.032, 465.856, 1797.856),
    8: (33.664, 86.624, 290.848, 1103.008),
    16: (30.080, 75.360, 258.240, 1004.256),
}
PUBLISHED_TOKEN_S = (
    289.55e-3 / 80 / 8192
)  # what a layer of Llama-3.3-70B computes for, of figure 11a without reductions


def published_table() -> WaveTable:
    """A layer's time in proportion to its tokens, and products that lose the SMs that CTAs take."""
    table = gpu_table(dict.fromkeys(PUBLISHED_US, 1.0), {ctas: 132 / (132 - ctas) for ctas in PUBLISHED_US})
    projections, mlp = (
        Curve((1, 16384), (share, 16384 * share))
        for share in (0.3 * PUBLISHED_TOKEN_S, 0.7 * PUBLISHED_TOKEN_S)
    )
    beside = tuple(
        BesideCtas(
            ctas,
            Curve(PUBLISHED_TOKENS, tuple(1e-6 * us for us in times_us)),
            projections.times(132 / (132 - ctas)),
            (mlp.times(132 / (132 - ctas)),),
        )
        for ctas, times_us in PUBLISHED_US.items()
    )
    kinds = (KindTimes(AttentionTimes((1,), (0.0,), (0.0,)), mlp),)
    return replace(table, projections=projections, kinds=kinds, sharing=SmSharing(132, beside, ((1, 16),)))


def test_the_published_times_ask_for_two_to_sixteen_ctas() -> None:
    table = CtaTable(choose_ctas(CostModel(published_table(), layers=(0,) * 80)))
    assert [table.of(tokens) for tokens in PUBLISHED_TOKENS] == [8, 4, 4, 4]


def test_a_processors_table_has_no_ctas_to_choose() -> None:
    with pytest.raises(TuneError, match="without times by CTAs"):
        choose_ctas(CostModel(linear_table(), layers=LAYERS))
