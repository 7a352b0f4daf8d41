"""Weights in FP8 by CudaKernels under Triton's interpreter. Run by test_fake_cuda.py."""

from __future__ import annotations

import pytest
import torch

from support.kernel_cases import DTYPES, assert_within, contract_kernels, ints, randn
from tokenweave.errors import KernelError
from tokenweave.kernels import LazyWeight, Tolerance, activation, gated_linear, linear
from tokenweave.kernels.cuda.backend.planes import FP8_UNIT, fp8_of


@pytest.fixture(scope="module")
def kernels():
    return contract_kernels("cuda").inner


def rounded_by_torch(weight):
    """The values that torch's own FP8 gives: float32."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / 448
    scales = torch.where(scales == 0, 1.0, scales)
    return (weight.float() / scales).to(torch.float8_e4m3fn).float() * scales


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_of_8_bits_has_its_value(kernels, dtype):
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
    values = codes.float().nan_to_num(448.0).expand(3, 256) * torch.tensor([[1.0], [2.0**-9], [0.37]])
    packed = kernels.pack_fp8(values.contiguous(), dtype=dtype)
    got = kernels.gather_rows(packed, ints(0, 1, 2, 3))
    assert torch.equal(got[:2], values[:2].to(dtype))
    torch.testing.assert_close(
        got[2], values[2].to(dtype), rtol=1e-6 if dtype is torch.float32 else 8e-3, atol=0
    )
    assert not got[3].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 33, 256), (19, 40, 77), (0, 8, 64)])
def test_a_product_is_that_of_the_rounded_values(kernels, dtype, m, n, k):
    x, weight, bias = randn(1, m, k, dtype=dtype), randn(2, n, k) / k**0.5 * randn(4, n, 1).exp(), randn(3, n)
    expected = x.float() @ rounded_by_torch(weight).T + bias
    packed = kernels.pack_fp8(weight, bias, dtype)
    assert packed.format == "fp8"
    # Values are not rounded to the dtype, as those that the tolerance is for are: what is left are the sums and y.
    tolerance = linear.TOLERANCE[dtype]
    assert_within(
        kernels.linear(x, packed), expected.to(dtype), Tolerance(tolerance.rtol, 4 * tolerance.atol)
    )


def test_a_rank_without_columns_or_rows_has_an_empty_product(kernels):
    """As of heads or of an MLP that are fewer than the ranks."""
    for weight in (torch.zeros(8, 0), LazyWeight(8, 0, lambda rows: torch.zeros(len(rows), 0))):
        got = kernels.linear(torch.zeros(3, 0), kernels.pack_fp8(weight, randn(1, 8), torch.float32))
        assert torch.equal(got, randn(1, 8).expand(3, 8))
    assert kernels.linear(torch.zeros(3, 8), kernels.pack_fp8(torch.zeros(0, 8))).shape == (3, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_linear_rounds_once(kernels, dtype):
    x, weights = randn(1, 5, 64, dtype=dtype), [randn(i, 40, 64) / 8 for i in (2, 3)]
    of_gate, of_up = (x.float() @ rounded_by_torch(weight).T for weight in weights)
    expected = (activation.activated(of_gate, "silu") * of_up).to(dtype)
    got = kernels.gated_linear(x, *(kernels.pack_fp8(weight, dtype=dtype) for weight in weights))
    assert_within(got, expected, gated_linear.TOLERANCE[dtype])


def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_is_refused(kernels):
    weight = randn(1, 4, 64)
    weight[1] = 0
    packed = kernels.pack_fp8(weight)
    got = kernels.gather_rows(packed, ints(0, 1, 2, 3))
    assert not got[1].any()
    torch.testing.assert_close(got, rounded_by_torch(weight), rtol=1e-6, atol=0)
    weight[2, 3] = float("nan")
    with pytest.raises(KernelError, match="values that are not finite, which FP8 cannot hold"):
        kernels.pack_fp8(weight)


def test_a_weight_is_rounded_as_it_is_read(kernels):
    weight = randn(1, 100, 64)
    lazy = LazyWeight(100, 64, lambda rows: weight[rows.start : rows.stop])
    packed = kernels.pack_fp8(lazy, dtype=torch.float32)
    assert torch.equal(packed.data, kernels.pack_fp8(weight).data)
    assert packed.size_bytes < 1.1 * weight.numel()


def test_scales_make_up_for_the_shift_of_the_bits():
    planes = fp8_of(torch.tensor([[448.0, -1.0]]))
    assert planes.scales.item() == FP8_UNIT
    assert planes.codes.tolist() == [[0x7E, 0xB8]]
