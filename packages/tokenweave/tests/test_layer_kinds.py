"""Models whose layers differ: each kind of layer has its own price."""

from __future__ import annotations

import pytest

from support.wave_tables import KINDS, WINDOWED, key_of, linear_table, mixed_table
from tokenweave.cost import ATTENTION_EFFICIENCY, GEMM_EFFICIENCY, CostModel, Peaks, analytic_table
from tokenweave.errors import TuneError
from tokenweave.geometry import BatchGeometry
from tokenweave.host_costs import LANES
from tokenweave.plan import Op, plan_forward
from tokenweave.simulate import simulate
from tokenweave.wave_table import LayerKind, MlpShape

TOKENS, WINDOW = 512, 128
FLOPS_PER_S = 40e9
PEAKS = Peaks(FLOPS_PER_S, bytes_per_s=1e15)  # arithmetic alone has a price
HIDDEN_SIZE, HEADS, HEAD_DIM = 576, 5, 64
DENSE = MlpShape((768, 768))
EXPERTS = MlpShape((96, 96), num_experts=8, experts_per_token=2)


def costs_of(*kinds: LayerKind) -> CostModel:
    """Worked-out prices of a model that has one layer of each kind."""
    table = analytic_table(key_of(hidden_size=HIDDEN_SIZE, kinds=kinds), PEAKS)
    return CostModel(table, layers=tuple(range(len(kinds))))


def gated_flops(rows: float, columns: int) -> float:
    """Of gate, up and down over so many rows."""
    return 2 * rows * HIDDEN_SIZE * 3 * columns


def gemms_s(flops: float) -> float:
    return LANES.call_s + flops / (GEMM_EFFICIENCY * FLOPS_PER_S)


def test_attention_is_priced_by_the_keys_that_its_window_shows() -> None:
    costs, load = costs_of(LayerKind(DENSE, WINDOW), LayerKind(DENSE)), BatchGeometry.prefill(TOKENS)
    seen = {
        0: WINDOW * (WINDOW + 1) / 2
        + (TOKENS - WINDOW) * WINDOW,  # the first ones see fewer than the window has
        1: TOKENS * (TOKENS + 1) / 2,
    }
    each_s = {kind: costs.stage_s(Op.ATTENTION, load, kind) for kind in seen}
    flops = 4 * HEADS * HEAD_DIM * (seen[1] - seen[0])  # a query times a key, and a weight times a value
    assert each_s[1] - each_s[0] == pytest.approx(flops / (ATTENTION_EFFICIENCY * FLOPS_PER_S))
    assert costs.stage_s(Op.MLP, load, 0) == costs.stage_s(Op.MLP, load, 1)


def test_an_mlp_is_priced_by_its_own_columns_and_experts() -> None:
    shared = MlpShape((96, 96), 8, 2, shared_columns=(256, 256))
    costs = costs_of(LayerKind(DENSE), LayerKind(EXPERTS), LayerKind(shared))
    dense_s, sparse_s, shared_s = (
        costs.stage_s(Op.MLP, BatchGeometry.prefill(384), kind) for kind in range(3)
    )
    assert dense_s == pytest.approx(gemms_s(gated_flops(384, 768)))
    assert sparse_s == pytest.approx(8 * gemms_s(gated_flops(384 * 2 / 8, 96)))
    assert shared_s == pytest.approx(sparse_s + gemms_s(gated_flops(384, 256)))


@pytest.mark.parametrize("layers", [(0, 1, 0, 1), (2, 0, 0, 0), (0, 0, 1, 2)])
def test_a_forward_of_a_mixed_model_is_the_sum_of_its_parts(layers: tuple[int, ...]) -> None:
    table, load = mixed_table(), BatchGeometry.prefill(TOKENS)
    costs, plan = CostModel(table, layers=layers), plan_forward(4, TOKENS)
    expected_s = table.embed(TOKENS) + table.logits(1) + 7 * table.reduce(TOKENS) + 2 * table.reduce(1)
    for layer, kind in enumerate(layers):
        for op in (Op.ATTENTION, Op.MLP):
            expected_s += costs.stage_s(op, load, kind, is_last=layer == 3)
    cost = costs.cost_of(plan, load)
    assert simulate(plan, cost, shared_core=True).total_s == pytest.approx(expected_s)
    for step in plan.steps:
        if step.op is Op.MLP and step.layer is not None and step.layer < 3:
            assert cost(step)[0].seconds == table.kinds[layers[step.layer]].mlp(TOKENS)


def test_layers_of_one_kind_are_priced_as_if_no_kind_were_named() -> None:
    plan, load = plan_forward(5, TOKENS, 240), BatchGeometry.prefill(TOKENS)
    plain, named = (CostModel(linear_table(), layers=layers).cost_of(plan, load) for layers in ((), (0,) * 5))
    assert [plain(step) for step in plan.steps] == [named(step) for step in plan.steps]


@pytest.mark.parametrize("layers", [(), (0, 3), (-1, 0)])
def test_layers_that_the_table_does_not_price_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(TuneError, match="expected a number from 0 to 2 for each layer"):
        CostModel(mixed_table(), layers=layers)


def test_a_plan_of_other_layers_is_refused() -> None:
    with pytest.raises(TuneError, match="a plan of 4 layers; expected 3"):
        CostModel(mixed_table(), layers=(0, 1, 2)).cost_of(plan_forward(4, 8), BatchGeometry.prefill(8))


def test_keys_tell_kinds_of_layers_apart() -> None:
    every = [KINDS[:1], KINDS[:2], KINDS[1:2], KINDS, KINDS[::-1], (LayerKind(EXPERTS), *KINDS[:2])]
    assert len({key_of(kinds=kinds).file_name for kinds in every}) == len(every)


@pytest.mark.parametrize("kinds", [(WINDOWED, WINDOWED), (LayerKind(MlpShape((768,))),)])
def test_a_key_without_sense_is_refused(kinds: tuple[LayerKind, ...]) -> None:
    with pytest.raises(TuneError, match="expected"):
        key_of(kinds=kinds)
