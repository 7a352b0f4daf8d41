"""Weights in blocks by CudaKernels under Triton's interpreter. Run by test_fake_cuda.py."""

from __future__ import annotations

import pytest
import torch

from support.kernel_cases import DTYPES, assert_within, contract_kernels, ints, randn
from support.recorded import WAITS, Recorded
from support.stored_cases import ALL_FORMATS, random_weight
from tokenweave.kernels import FORMATS, activation, dequantise, gated_linear, linear
from tokenweave.kernels.cuda.backend.blocks import DeviceBlocks

by_format = pytest.mark.parametrize("form", ALL_FORMATS, ids=lambda form: form.name)
FAST = ("q8_0", "q4_0", "q4_k")
some_fast_by_format = pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=[] if form.name in FAST else [pytest.mark.slow]) for form in ALL_FORMATS],
    ids=lambda form: form.name,
)


@pytest.fixture(scope="module")
def kernels():
    return contract_kernels("cuda").inner


def unit_rows(m, weight, dtype):
    """Rows whose products with the weight have a variance of about 1."""
    values = dequantise(weight)
    return (randn(m + 1, m, weight.k) / (values.square().mean() * weight.k).sqrt()).to(dtype)


def product(x, *weights):
    """The product with the weights' values, as they are rounded to x's dtype, in float32."""
    values = torch.cat([dequantise(each) for each in weights]).to(x.dtype)
    return x.float() @ values.float().T


@some_fast_by_format
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k", "first"), [(1, 33, 96, 0), (19, 20, 64, 0), (3, 9, 301, 21)])
def test_a_product_is_that_of_the_blocks_values(kernels, form, dtype, m, n, k, first):
    weight, bias = random_weight(k, form, n, k, first), randn(3, n)
    x = unit_rows(m, weight, dtype)
    expected = product(x, weight) + bias
    packed = kernels.pack_stored(weight, bias, dtype)
    assert_within(kernels.linear(x, packed), expected.to(dtype), linear.TOLERANCE[dtype])
    wide, out = torch.full((m, n + 5), 7.0), torch.empty(m, n)
    kernels.linear(x, packed, out=wide[:, 2:-3])
    torch.testing.assert_close(wide[:, 2:-3], expected, rtol=1e-4, atol=1e-4)
    assert (wide[:, :2] == 7.0).all()
    assert (wide[:, -3:] == 7.0).all()
    assert kernels.linear(x, packed, out) is out


@by_format
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "first"), [(700, 19), (3, 250)])
def test_rows_are_the_blocks_values_to_the_bit(kernels, form, dtype, k, first):
    first %= form.block_values
    weight = random_weight(1, form, 40, k, first)
    packed = kernels.pack_stored(weight, dtype=dtype)
    got = kernels.gather_rows(packed, ints(99, 100, 139, 140, -1), first_row=100)
    values, zero = dequantise(weight).to(dtype), torch.zeros(k, dtype=dtype)
    assert torch.equal(got, torch.stack([zero, values[0], values[39], zero, zero]))


def test_a_stack_of_formats_is_its_parts_one_below_the_other(kernels):
    names = ("q4_k", "q6_k", "q8_0")
    parts = [random_weight(i, FORMATS[name], 20 + i, 512) for i, name in enumerate(names)]
    bias, x = randn(1, 63), unit_rows(3, parts[0], torch.float32)
    packed = kernels.pack_stored(parts, bias)
    assert (packed.format, packed.n, packed.k) == ("q4_k+q6_k+q8_0", 63, 512)
    torch.testing.assert_close(kernels.linear(x, packed), product(x, *parts) + bias, rtol=1e-4, atol=1e-3)
    values = torch.cat([dequantise(part) for part in parts])
    ids = ints(0, 19, 20, 40, 41, 62, 63)
    assert torch.equal(kernels.gather_rows(packed, ids)[:-1], values[ids[:-1].long()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("names", "has_bias"), [(("q4_0", "q4_0"), False), (("q8_0", "q8_0"), True), (("q4_k", "q6_k"), False)]
)
def test_a_gated_linear_of_blocks_rounds_once(kernels, dtype, names, has_bias):
    gate, up = (random_weight(i, FORMATS[name], 40, 256) for i, name in enumerate(names))
    biases = [randn(i, 40) if has_bias else None for i in (5, 6)]
    x = unit_rows(5, gate, dtype)
    weights = [kernels.pack_stored(*each, dtype) for each in zip((gate, up), biases, strict=True)]
    of_gate, of_up = (
        product(x, weight) + (0 if bias is None else bias)
        for weight, bias in zip((gate, up), biases, strict=True)
    )
    for name in ("silu", "gelu_tanh"):
        expected = (activation.activated(of_gate, name) * of_up).to(dtype)
        assert_within(kernels.gated_linear(x, *weights, name), expected, gated_linear.TOLERANCE[dtype])


# Bits of a value: of the codes, and of what scales them.
SIZES = {"q4_0": 4.5, "q4_1": 5, "q8_0": 8.5, "q4_k": 4.625, "q5_k": 8.625, "q6_k": 8.5625}


@by_format
def test_blocks_take_the_memory_of_their_codes_and_scales(kernels, form):
    packed = kernels.pack_stored(random_weight(1, form, 64, 4096))
    assert isinstance(packed, DeviceBlocks)
    assert packed.size_bytes == 64 * 4096 * SIZES[form.name] / 8


def test_a_product_of_blocks_reads_nothing_on_the_host(kernels):
    weights = [kernels.pack_stored(random_weight(i, FORMATS["q4_0"], 32, 128)) for i in (1, 2)]
    x = randn(1, 2, 128)
    with Recorded() as seen:
        kernels.linear(x, weights[0])
        kernels.gated_linear(x, *weights)
        kernels.gather_rows(weights[0], ints(1, 5))
    assert not seen.names & WAITS
