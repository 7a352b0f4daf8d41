"""Mixtures of experts of CudaKernels under Triton's interpreter. Run by test_fake_cuda.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.experts import Gated
from support.kernel_cases import DTYPES, assert_within, contract_kernels, randn
from support.recorded import WAITS, Recorded
from support.stored_cases import random_weight
from tokenweave.errors import KernelError
from tokenweave.kernels import FORMATS, ReferenceKernels, Tolerance
from tokenweave.kernels.cuda.backend.experts import ExpertTable
from tokenweave.kernels.cuda.backend.placing import CHUNK, place
from tokenweave.kernels.cuda.backend.products import rows_of_tile
from tokenweave.kernels.mixture import mixture_of_chosen_rows

REFERENCE = ReferenceKernels()
CPU = torch.device("cpu")
# Sums of two products of variance 1, each after a gated MLP: in 16 bits both are rounded on the way.
TOLERANCE = {
    torch.float32: Tolerance(1e-4, 1e-4),
    torch.bfloat16: Tolerance(1.6e-2, 1e-2),
    torch.float16: Tolerance(2e-3, 1.5e-3),
}


@pytest.fixture(scope="module")
def kernels():
    return contract_kernels("cuda").inner


def matrices(num_experts, hidden, inner, dtype):
    """gate, up and down of each expert."""
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    return [
        [(randn(3 * e + i, n, k) / k**0.5).to(dtype) for i, (n, k) in enumerate(shapes)]
        for e in range(num_experts)
    ]


def packed_by(kernels, weights, activation="silu"):
    return [Gated(*(kernels.pack(each) for each in expert), activation) for expert in weights]


def routed(num_rows, num_experts, per_row):
    """The experts of each row, and their weights, which sum to 1."""
    weights, chosen = randn(77, num_rows, num_experts).softmax(-1).topk(per_row, dim=-1)
    return chosen, weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", [*DTYPES, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("m", "num_experts", "per_row", "hidden", "inner"),
    [(0, 5, 2, 32, 48), (1, 8, 2, 64, 112), (3, 5, 3, 96, 40), (33, 1, 1, 40, 33), (70, 4, 2, 48, 72)],
)
def test_a_mixture_by_grouped_products_is_that_of_each_experts_own_rows(
    kernels, dtype, m, num_experts, per_row, hidden, inner
):
    weights, x = matrices(num_experts, hidden, inner, dtype), randn(99, m, hidden, dtype=dtype)
    activation = "silu" if m != 3 else "gelu_tanh"
    choice = routed(m, num_experts, per_row)
    expected = mixture_of_chosen_rows(REFERENCE, x, packed_by(REFERENCE, weights, activation), *choice)
    table = kernels.group_experts(packed_by(kernels, weights, activation))
    assert isinstance(table, ExpertTable)
    assert_within(kernels.mixture(x, table, *choice), expected, TOLERANCE[dtype])


def test_tiles_of_every_size_are_taken():
    means = (0.25, 16, 16.1, 64, 64.1, 8192)
    for dtype, is_gated, form, sizes in [
        (torch.bfloat16, True, "dense", [16, 16, 64, 64, 128, 128]),
        (torch.bfloat16, False, "q4_0", [16, 16, 64, 64, 128, 128]),
        (torch.bfloat16, True, "q8_0", [16, 16, 64, 64, 64, 64]),
        (torch.float32, True, "dense", [16, 16, 64, 64, 64, 64]),
        (torch.float32, False, "q8_0", [16, 16, 16, 16, 16, 16]),
    ]:
        assert [rows_of_tile(mean, dtype, is_gated, form) for mean in means] == sizes


@pytest.mark.parametrize("m", [130])
def test_tiles_of_many_rows_give_the_same_sums(kernels, m):
    weights, x, choice = matrices(1, 32, 24, torch.bfloat16), randn(9, m, 32).bfloat16(), routed(m, 1, 1)
    expected = mixture_of_chosen_rows(REFERENCE, x, packed_by(REFERENCE, weights), *choice)
    got = kernels.mixture(x, kernels.group_experts(packed_by(kernels, weights)), *choice)
    assert_within(got, expected, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize(("m", "num_experts", "rows"), [(1, 40, 16), (50, 3, 16), (CHUNK + 77, 6, 64)])
def test_each_choice_has_one_slot_in_a_tile_of_its_expert(m, num_experts, rows):
    chosen, _ = routed(m, num_experts, 2)
    chosen[0, 1] = num_experts  # not there
    tiles = place(chosen, num_experts, rows, CPU)
    found = {}
    for expert, choices in zip(tiles.experts.tolist(), tiles.choices.tolist(), strict=True):
        own = [choice for choice in choices if choice >= 0 and expert >= 0]
        assert own == sorted(own)
        found |= dict.fromkeys(own, expert)
    expected = dict(enumerate(chosen.flatten().tolist()))
    del expected[1]
    assert found == expected
    used = [expert for expert in tiles.experts.tolist() if expert >= 0]
    assert used == sorted(used)


def test_a_choice_of_no_expert_adds_nothing(kernels):
    weights, x = matrices(4, 32, 24, torch.float32), randn(9, 6, 32)
    chosen, shares = routed(6, 4, 2)
    table = kernels.group_experts(packed_by(kernels, weights))
    chosen[2], chosen[3, 0] = torch.tensor([4, -1]), -(2**40)
    got = kernels.mixture(x, table, chosen, shares)
    assert not got[2].any()
    alone = kernels.mixture(x[3:4], table, chosen[3:4, 1:].contiguous(), shares[3:4, 1:].contiguous())
    assert torch.equal(got[3], alone[0])


def test_a_row_has_the_bits_that_it_has_alone(kernels):
    weights, x = matrices(5, 32, 24, torch.float32), randn(9, 9, 32)
    chosen, shares = routed(9, 5, 2)
    table = kernels.group_experts(packed_by(kernels, weights))
    whole = kernels.mixture(x, table, chosen, shares)
    for row in (0, 7):
        one = slice(row, row + 1)
        assert torch.equal(kernels.mixture(x[one], table, chosen[one], shares[one]), whole[one])


def test_a_table_copies_no_weight(kernels):
    experts = packed_by(kernels, matrices(3, 32, 24, torch.bfloat16))
    table = kernels.group_experts(experts)
    assert list(table) == experts
    assert (len(table), table[2], table[1:]) == (3, experts[2], tuple(experts[1:]))
    assert table.downs.tolist() == [each.down.data.data_ptr() for each in experts]


def test_experts_that_differ_or_have_a_bias_compute_every_row(kernels):
    """One by one, and the host still reads nothing."""
    weights, x, choice = matrices(3, 32, 24, torch.float32), randn(9, 5, 32), routed(5, 3, 2)
    expected = mixture_of_chosen_rows(REFERENCE, x, packed_by(REFERENCE, weights), *choice)
    experts = packed_by(kernels, weights)
    biased = [replace(experts[0], up=kernels.pack(weights[0][1], torch.zeros(24))), *experts[1:]]
    uneven = [replace(experts[0], activation="gelu_tanh"), *experts[1:]]
    for grouped in (kernels.group_experts(biased), kernels.group_experts(uneven)):
        assert type(grouped) is tuple
    with Recorded() as seen:
        got = kernels.mixture(x, kernels.group_experts(biased), *choice)
    assert not seen.names & WAITS
    assert_within(got, expected, TOLERANCE[torch.float32])


def test_a_mixture_reads_nothing_on_the_host(kernels):
    table = kernels.group_experts(packed_by(kernels, matrices(3, 32, 24, torch.float32)))
    x, choice = randn(9, 5, 32), routed(5, 3, 2)
    with Recorded() as seen:
        kernels.mixture(x, table, *choice)
    assert not seen.names & WAITS


def test_choices_that_do_not_fit_are_refused(kernels):
    table = kernels.group_experts(packed_by(kernels, matrices(3, 32, 24, torch.float32)))
    chosen, shares = routed(5, 3, 2)
    x = randn(9, 5, 32)
    with pytest.raises(KernelError, match=r"chosen is .*expected torch.int64 \(5, 2\)"):
        kernels.mixture(x, table, chosen.int(), shares)
    with pytest.raises(KernelError, match=r"weights is .*expected torch.float32 \(5, 2\)"):
        kernels.mixture(x, table, chosen, shares[:, :1])
    with pytest.raises(KernelError, match=r"x is .*expected torch.float32 \(5, 32\)"):
        kernels.mixture(x[:, :31], table, chosen, shares)


@pytest.mark.parametrize("names", [("q4_0", "q8_0"), ("q4_k", "q6_k")], ids="+".join)
def test_experts_in_blocks_are_multiplied_as_such(kernels, names):
    inner_form, down_form = (FORMATS[name] for name in names)
    weights = [
        [random_weight(9 * e + i, inner_form, 48, 96) for i in (0, 1)]
        + [random_weight(9 * e + 2, down_form, 40, 48)]
        for e in range(3)
    ]
    x, choice = randn(9, 5, 96) / 10, routed(5, 3, 2)
    experts = [
        [Gated(*(each.pack_stored(weight) for weight in expert)) for expert in weights]
        for each in (REFERENCE, kernels)
    ]
    table = kernels.group_experts(experts[1])
    assert isinstance(table, ExpertTable)
    expected = mixture_of_chosen_rows(REFERENCE, x, experts[0], *choice)
    got = kernels.mixture(x, table, *choice)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
