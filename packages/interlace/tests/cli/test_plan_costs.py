"""The round prices of `interlace plan show`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from interlace.cache.kv_tier import KvTierSpec
from interlace.cli.plan_costs import round_costs
from interlace.models.config import ModelConfig, weight_shapes
from interlace.models.shard import Shard
from support.configs import SMOLLM2
from tokenweave.plan import Moves, plan_forward

SPARSE = replace(SMOLLM2, family="mixtral", num_experts=8, experts_per_token=2)
WINDOWED = replace(SMOLLM2, family="mistral", sliding_window=128)


def total_s(config: ModelConfig, size: int = 2, num_tokens: int = 512, split: int | None = None) -> float:
    """The modelled time of a forward pass over a slow link."""
    shards = [Shard.of(config, rank, size) for rank in range(size)]
    costs = round_costs(config, shards, "bfloat16", "0.25GB/s,5us")
    return costs.timeline(plan_forward(config.num_layers, num_tokens, split)).total_s


@pytest.mark.parametrize(
    ("config", "expected_s"),
    [
        (SMOLLM2, (1.4246960962823512, 0.8987515306425342, 1.5850314454648569)),
        (SPARSE, (2.3557921169882317, 1.3658295409954753, 2.4970644748295703)),
        (WINDOWED, (1.3423492930823513, 0.8530000298425344, 1.3495049430648545)),
    ],
    ids=["dense", "sparse", "windowed"],
)
def test_models_of_layers_alike_keep_their_figures(
    config: ModelConfig, expected_s: tuple[float, ...]
) -> None:
    """From before layers had kinds."""
    found_s = (total_s(config, 1), total_s(config), total_s(config, 2, 1000, 480))
    assert found_s == pytest.approx(expected_s, rel=1e-12)


def test_a_gpus_small_batches_read_their_weights_and_lanes_are_streams() -> None:
    """One token's products take what reading the weights takes: half, where these are."""
    shards = Shard.all_of(SMOLLM2, 2)
    whole, half = (
        round_costs(SMOLLM2, shards, "bfloat16", None, weight_bytes, "cuda").model for weight_bytes in (4, 2)
    )
    call_s = whole.table.host.call_s
    assert whole.table.projections(1) - call_s == pytest.approx(2 * (half.table.projections(1) - call_s))
    assert whole.table.is_of_gpu
    assert whole.table.sharing is not None


def test_a_model_with_windows_in_some_layers_lies_between_those_with_all_and_with_none() -> None:
    half = replace(WINDOWED, full_layers=tuple(range(0, 29, 2)))  # but the last: it has one token to attend
    assert total_s(half) == pytest.approx((total_s(WINDOWED) + total_s(SMOLLM2)) / 2, rel=1e-3)


def test_dense_layers_among_experts_have_a_dense_price() -> None:
    """Without a link nothing but the MLP differs: each dense layer saves as much."""

    def with_dense(count: int) -> float:
        dense = {"dense_layers": tuple(range(count)), "dense_intermediate_size": 1536}
        return total_s(replace(SPARSE, **(dense if count else {})), 1)

    one, two, all_but_one = (with_dense(0) - with_dense(count) for count in (1, 2, 29))
    assert one > 0
    assert (two, all_but_one) == pytest.approx((2 * one, 29 * one))


def weights_tier_s(num_tokens: int, text: str) -> tuple[float, float, float]:
    """A pass of one rank with weights in local memory, one with layers from the tier, and its link alone."""
    shards = [Shard.of(SMOLLM2, 0, 1)]
    layer_bytes = 2 * sum(
        math.prod(shape) for name, shape in weight_shapes(SMOLLM2).items() if name.startswith("layers.3.")
    )
    costs = round_costs(SMOLLM2, shards, "bfloat16", None)
    fetched = costs.with_weights_tier(KvTierSpec.parse(text), layer_bytes)
    plan = plan_forward(30, num_tokens, None, Moves(fetches_weights=True))
    link_s = 30 * layer_bytes / 1e9
    return costs.timeline(plan_forward(30, num_tokens)).total_s, fetched.timeline(plan).total_s, link_s


def test_a_prompt_hides_layers_that_come_from_a_tier_and_a_pass_that_decodes_waits_for_them() -> None:
    local_s, tier_s, link_s = weights_tier_s(2048, "cxl:1GB@1GB/s,0us")
    assert local_s + link_s / 30 == pytest.approx(tier_s, rel=1e-3)  # but for the first
    local_s, tier_s, link_s = weights_tier_s(1, "cxl:1GB@1GB/s,0us")
    assert link_s < tier_s < link_s + local_s / 2
