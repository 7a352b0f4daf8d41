"""Mixtures of experts: gathering each expert's rows and computing all of them give the same sums."""

from __future__ import annotations

import pytest
import torch

from support.experts import Gated
from support.kernel_cases import DTYPES, randn
from tokenweave.kernels import NativeKernels, ReferenceKernels
from tokenweave.kernels.mixture import mixture_of_all_rows, mixture_of_chosen_rows

HIDDEN, INNER, NUM_EXPERTS, CHOSEN = 32, 48, 5, 2


def experts(kernels, dtype=torch.float32):
    def pack(seed, n, k):
        return kernels.pack(randn(seed, n, k, dtype=dtype) / k**0.5)

    return [
        Gated(pack(3 * e, INNER, HIDDEN), pack(3 * e + 1, INNER, HIDDEN), pack(3 * e + 2, HIDDEN, INNER))
        for e in range(NUM_EXPERTS)
    ]


def routed(num_rows):
    """The experts of each row, and their weights, which sum to 1."""
    weights, chosen = randn(77, num_rows, NUM_EXPERTS).softmax(-1).topk(CHOSEN, dim=-1)
    return chosen, weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [0, 1, 2, 33])
@pytest.mark.parametrize("make", [ReferenceKernels, NativeKernels])
def test_both_ways_give_the_same_sums(make, dtype, num_rows):
    kernels, x = make(), randn(1, num_rows, HIDDEN, dtype=dtype)
    of = experts(kernels, dtype), *routed(num_rows)
    expected = mixture_of_chosen_rows(kernels, x, *of)
    got = mixture_of_all_rows(kernels, x, *of)
    assert got.dtype == expected.dtype == torch.float32
    if make is NativeKernels:
        assert torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("mixture", [mixture_of_chosen_rows, mixture_of_all_rows])
def test_a_mixture_is_the_weighted_sum_of_the_chosen_experts(mixture):
    kernels, x = ReferenceKernels(), randn(1, 7, HIDDEN)
    of, (chosen, weights) = experts(kernels), routed(7)
    got = mixture(kernels, x, of, chosen, weights)
    for row in range(7):
        expected = torch.zeros(HIDDEN)
        for place, index in enumerate(chosen[row].tolist()):
            gate, up, down = (packed.data for packed in (of[index].gate, of[index].up, of[index].down))
            inner = torch.nn.functional.silu(gate @ x[row]) * (up @ x[row])
            expected += weights[row, place] * (down @ inner)
        torch.testing.assert_close(got[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixture", [mixture_of_chosen_rows, mixture_of_all_rows])
def test_a_row_has_the_bits_that_it_has_alone(mixture):
    kernels, x = NativeKernels(), randn(1, 19, HIDDEN)
    of, (chosen, weights) = experts(kernels), routed(19)
    whole = mixture(kernels, x, of, chosen, weights)
    for row in range(19):
        one = slice(row, row + 1)
        assert torch.equal(mixture(kernels, x[one], of, chosen[one], weights[one]), whole[one])


def test_an_expert_that_overflows_spoils_no_row_that_did_not_choose_it():
    kernels, x = ReferenceKernels(), randn(1, 6, HIDDEN)
    chosen, weights = torch.tensor([[0, 1]] * 3 + [[1, 2]] * 3), torch.full((6, 2), 0.5)
    of = experts(kernels)
    expected = mixture_of_chosen_rows(kernels, x, of, chosen, weights)
    of[2].down.data.fill_(float("inf"))
    got = mixture_of_all_rows(kernels, x, of, chosen, weights)
    torch.testing.assert_close(got[:3], expected[:3], rtol=1e-5, atol=1e-5)
    assert not got[3:].isfinite().any()


def test_on_a_device_no_row_is_counted():
    kernels = ReferenceKernels(device="meta")
    chosen, weights = (each.to("meta") for each in routed(6))
    x = torch.empty(6, HIDDEN, device="meta")
    of = experts(kernels)
    with pytest.raises(NotImplementedError, match="nonzero"):
        mixture_of_chosen_rows(kernels, x, of, chosen, weights)
    got = kernels.mixture(x, of, chosen, weights)
    assert (got.shape, got.dtype, got.device.type) == ((6, HIDDEN), torch.float32, "meta")
