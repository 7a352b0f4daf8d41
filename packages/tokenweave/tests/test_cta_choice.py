"""How many CTAs a reduction takes, on tables whose best numbers are known, and on the published times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.wave_tables import gpu_table, linear_table
from tokenweave.cost import CostModel
from tokenweave.cta_choice import with_best_ctas
from tokenweave.curves import AttentionTimes, Curve
from tokenweave.errors import TuneError
from tokenweave.geometry import BatchGeometry
from tokenweave.host_costs import HostCosts
from tokenweave.plan import plan_forward
from tokenweave.sm_sharing import BesideCtas, SmSharing
from tokenweave.split import Choice, LayerSample, candidates, choose_split
from tokenweave.wave_table import KindTimes, WaveTable

LAYERS = (0,) * 30
FREE = {2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0}  # products that lose nothing to CTAs


def sharing_of(table: WaveTable) -> SmSharing:
    assert table.sharing is not None
    return table.sharing


def chosen(reduce_us: dict[int, float], slow_down: dict[int, float]) -> SmSharing:
    return sharing_of(with_best_ctas(CostModel(gpu_table(reduce_us, slow_down), layers=LAYERS)))


def test_in_a_whole_batch_the_fastest_reduction_counts_whatever_it_takes() -> None:
    assert chosen({2: 4.0, 4: 2.0, 8: 1.0, 16: 1.2}, dict.fromkeys(FREE, 3.0)).whole == ((4096, 8),)


def test_numbers_that_are_as_fast_leave_the_sms_to_others() -> None:
    assert chosen({2: 4.0, 4: 1.01, 8: 1.0, 16: 1.0}, FREE).whole == ((4096, 4),)


def test_a_woven_reduction_takes_no_more_than_it_needs_to_hide() -> None:
    """A token's layer computes for 20 us: two CTAs reduce it, twice, in 8 us and take the least from the products."""
    found = chosen({2: 4.0, 4: 3.0, 8: 2.0, 16: 2.0}, {2: 1.01, 4: 1.04, 8: 1.1, 16: 1.2})
    assert (found.whole, found.woven) == (((4096, 8),), ((4096, 2),))


def test_a_reduction_that_would_not_hide_takes_more() -> None:
    """Two CTAs would take 120 us a token; a layer computes for 40, attention to thousands of keys included."""
    found = chosen({2: 60.0, 4: 30.0, 8: 10.0, 16: 9.9}, {2: 1.0, 4: 1.0, 8: 1.01, 16: 1.2})
    assert found.in_part(4096).num_ctas == 8


def test_sizes_with_different_best_numbers_are_told_apart() -> None:
    table = gpu_table(dict.fromkeys((2, 8), 1.0), dict.fromkeys((2, 8), 3.0))
    two, eight = sharing_of(table).beside
    beside = (
        replace(two, reduce=Curve((16, 64, 1024, 4096), (1e-6, 2e-6, 40e-6, 160e-6))),
        replace(eight, reduce=Curve((16, 64, 1024, 4096), (2e-6, 3e-6, 10e-6, 40e-6))),
    )
    found = with_best_ctas(CostModel(replace(table, sharing=SmSharing.of(132, beside)), layers=LAYERS))
    assert sharing_of(found).whole == ((64, 2), (4096, 8))
    assert [found.reduce(tokens) for tokens in (16, 64, 1024, 4096)] == [1e-6, 2e-6, 10e-6, 40e-6]


def test_a_processors_table_has_no_ctas_to_choose() -> None:
    with pytest.raises(TuneError, match="without times by CTAs"):
        with_best_ctas(CostModel(linear_table(), layers=LAYERS))


# TokenWeave (arXiv 2505.11329), Llama-3.3-70B on 8 H100. Figure 10: microseconds of the fused operation, hidden size
# 8192, by CTAs. Figures 4 and 11a: an RMSNorm of all rows in microseconds, a prefill in milliseconds without the
# all-reduces, and overlapped.
CALLS = (256, 512, 1024, 2048, 4096, 8192, 16384)
CALL_US = {
    2: (61.248, 110.016, 207.808, 403.136, 792.832, 1571.136, 3125.376),
    4: (41.984, 70.752, 128.032, 240.352, 465.856, 913.824, 1797.856),
    8: (33.664, 51.264, 86.624, 155.424, 290.848, 561.696, 1103.008),
    16: (30.080, 45.056, 75.360, 137.088, 258.240, 503.456, 1004.256),
}
PREFILLS = {  # by tokens: norm, without all-reduces, overlapped
    1024: (29.920, 41.938, 46.164),
    2048: (51.840, 74.922, 76.732),
    4096: (96.288, 144.896, 142.226),
    8192: (184.192, 289.550, 279.757),
    16384: (361.088, 610.219, 585.341),
}
NUM_LAYERS, NUM_NORMS = 80, 161


def published_table() -> WaveTable:
    """Stages of a layer as published, a third of them projections; products lose the SMs that CTAs take."""
    layer_s = {
        tokens: (1e-3 * bare_ms - 1e-6 * NUM_NORMS * norm_us) / NUM_LAYERS
        for tokens, (norm_us, bare_ms, _) in PREFILLS.items()
    }
    per_token_s = (
        layer_s[2048] - layer_s[1024]
    ) / 1024  # and down from there: weights are read however few they are
    layer_s |= {tokens: layer_s[1024] - (1024 - tokens) * per_token_s for tokens in (256, 512)}
    layer = Curve(tuple(sorted(layer_s)), tuple(layer_s[tokens] for tokens in sorted(layer_s)))
    beside = tuple(
        BesideCtas(
            ctas,
            Curve(CALLS, tuple(1e-6 * us for us in times_us)),
            layer.times(132 / (132 - ctas) / 3),
            (layer.times(132 / (132 - ctas) * 2 / 3),),
        )
        for ctas, times_us in CALL_US.items()
    )
    nothing = Curve((1,), (0.0,))
    return replace(
        gpu_table(dict.fromkeys(CALL_US, 1.0), dict.fromkeys(CALL_US, 1.0)),
        projections=layer.times(1 / 3),
        kinds=(KindTimes(AttentionTimes((1,), (0.0,), (0.0,)), layer.times(2 / 3)),),
        embed=nothing,
        logits=nothing,
        host=HostCosts(),
        sharing=SmSharing.of(132, beside),
    )


@pytest.fixture(scope="module")
def published() -> WaveTable:
    return with_best_ctas(CostModel(published_table(), layers=(0,) * NUM_LAYERS))


def test_the_published_times_ask_for_the_published_numbers(published: WaveTable) -> None:
    """16 saturate; 2 to 8 SMs were given to reductions that are hidden."""
    sharing = sharing_of(published)
    assert [sharing.in_whole(tokens).num_ctas for tokens in CALLS] == [16] * len(CALLS)
    assert {sharing.in_part(tokens).num_ctas for tokens in CALLS if tokens >= 1024} <= {2, 4, 8}


@pytest.mark.parametrize("num_tokens", PREFILLS)
def test_a_woven_prefill_is_predicted_within_a_tenth_of_the_published_one(
    published: WaveTable, num_tokens: int
) -> None:
    choice = price(published, num_tokens)
    assert choice.split is not None
    assert 1e3 * choice.predicted_s == pytest.approx(PREFILLS[num_tokens][2], rel=0.1)
    assert choice.gain > 0.05


def price(table: WaveTable, num_tokens: int) -> Choice:
    sample = LayerSample.of((0,) * NUM_LAYERS)
    costs, load = CostModel(table, layers=sample.kinds), BatchGeometry.prefill(num_tokens)

    def plan_of(split: int | None):  # type: ignore[no-untyped-def]
        return plan_forward(len(sample.kinds), num_tokens, split)

    splits = candidates(num_tokens, 128)
    return choose_split(
        plan_of, lambda at: costs.cost_of(plan_of(at), load), splits, shared_core=False, sample=sample
    )
