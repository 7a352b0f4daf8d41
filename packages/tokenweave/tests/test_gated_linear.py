"""A gated linear unit has the bits of its two products and the gate over them, taken in float32, on every path."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.kernel_cases import AVAILABLE_ISAS, DTYPES, assert_within, native_kernels, randn
from support.stored_cases import ALL_FORMATS, random_weight
from tokenweave.errors import KernelError
from tokenweave.kernels import FORMATS, NativeKernels, PackedLinear, ReferenceKernels, dequantise
from tokenweave.kernels.gated_linear import TOLERANCE

isas, dtypes, formats = st.sampled_from(AVAILABLE_ISAS), st.sampled_from(DTYPES), st.sampled_from(ALL_FORMATS)
activations = st.sampled_from(["silu", "gelu_tanh"])
threads = st.sampled_from([1, 2, 3])
# One row, tiles of 12 and 96 rows and a row more, blocks of 384 rows, two of them, and two blocks of long rows.
rows = st.sampled_from([1, 2, 11, 13, 97, 384, 385, 800])
widths = st.integers(1, 100)  # mostly no multiple of a panel's 32 columns
depths = st.sampled_from([1, 77, 512, 1100])  # 512: rows of float32 that alias in a cache


def pair(kernels: NativeKernels, x: Tensor, gate: PackedLinear, up: PackedLinear, activation: str) -> Tensor:
    """The same in three calls; in float32, where the gate may read both products without rounding."""
    products = [kernels.linear(x, each, out=torch.empty(len(x), each.n)) for each in (gate, up)]
    gate_and_mul = kernels.silu_and_mul if activation == "silu" else kernels.gelu_tanh_and_mul
    return gate_and_mul(torch.cat(products, dim=1)).to(x.dtype)


def packed_pair(
    kernels: NativeKernels, n: int, k: int, dtype: torch.dtype, with_bias: bool
) -> list[PackedLinear]:
    return [
        kernels.pack(randn(seed, n, k, dtype=dtype) / k**0.5, randn(seed + 5, n) if with_bias else None)
        for seed in (1, 2)
    ]


@settings(max_examples=60)
@given(isas, dtypes, activations, threads, rows, widths, depths, st.booleans())
def test_a_gated_linear_has_the_bits_of_the_pair(isa, dtype, activation, num_threads, m, n, k, with_bias):
    kernels = native_kernels(isa, num_threads)
    x, weights = randn(m, m, k, dtype=dtype), packed_pair(kernels, n, k, dtype, with_bias)
    got = kernels.gated_linear(x, *weights, activation)
    assert got.dtype == dtype
    assert torch.equal(got, pair(kernels, x, *weights, activation))


@settings(max_examples=60)
@given(isas, dtypes, activations, threads, rows, widths, formats, formats, st.booleans(), st.data())
def test_weights_in_blocks_have_the_bits_of_the_pair(
    isa, dtype, activation, num_threads, m, n, form, other, with_bias, data
):
    kernels, k = native_kernels(isa, num_threads), 512
    first = data.draw(st.integers(0, min(form.block_values, other.block_values) - 1))
    gate, up = (
        kernels.pack_stored(random_weight(i, each, n, k, first), randn(i, n) if with_bias else None, dtype)
        for i, each in enumerate((form, other))
    )
    x = randn(m, m, k, dtype=dtype) / k**0.5
    assert torch.equal(kernels.gated_linear(x, gate, up, activation), pair(kernels, x, gate, up, activation))


@settings(max_examples=40)
@given(isas, dtypes, activations, threads, st.integers(1, 500), st.booleans(), st.data())
def test_a_rows_bits_depend_on_nothing_but_the_row(isa, dtype, activation, num_threads, m, is_stored, data):
    """Not on the rows beside it, nor on how many threads share the panels."""
    n, k = 75, 512
    x, units = randn(m, m, k, dtype=dtype), []
    for kernels in (native_kernels(isa, num_threads), native_kernels(isa, 1)):
        if is_stored:
            stored = [random_weight(seed, FORMATS["q4_k"], n, k) for seed in (1, 2)]
            weights = [kernels.pack_stored(each, dtype=dtype) for each in stored]
        else:
            weights = packed_pair(kernels, n, k, dtype, with_bias=False)
        units.append(
            lambda rows, kernels=kernels, weights=weights: kernels.gated_linear(rows, *weights, activation)
        )
    together, alone = units
    whole = together(x)
    for first, last in pairwise(sorted({0, m, *data.draw(st.lists(st.integers(0, m), max_size=3))})):
        assert torch.equal(alone(x[first:last]), whole[first:last])


@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_wider_matrix_are_read_where_they_are(isa, dtype):
    kernels = native_kernels(isa)
    weights, wide = packed_pair(kernels, 40, 64, dtype, with_bias=True), randn(3, 15, 100, dtype=dtype)
    x = wide[:, 10:74]
    assert torch.equal(kernels.gated_linear(x, *weights), kernels.gated_linear(x.contiguous(), *weights))


@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
def test_bfloat16_is_rounded_once(isa):
    """64.5 * (1 + 2**-8) is nearer to 65; an up that were rounded by itself would be 1, and the result 64.5."""
    kernels, x = native_kernels(isa), torch.tensor([[1.0, 2.0**-8]], dtype=torch.bfloat16)
    gate = torch.tensor([[64.5, 0.0]], dtype=torch.bfloat16)  # so large that SiLU is the value itself
    weights = [kernels.pack(each) for each in (gate, torch.ones_like(gate))]
    assert kernels.gated_linear(x, *weights).item() == 65.0


@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
def test_the_extremes_of_the_gate_stay_finite_and_a_rows_nan_its_own(isa, name):
    kernels = native_kernels(isa)
    weights = [kernels.pack(torch.eye(32)), kernels.pack(torch.eye(32))]
    x = torch.linspace(-300, 300, 64).view(2, 32)
    clean = kernels.gated_linear(x, *weights, name)
    assert_within(
        clean, ReferenceKernels().gated_linear(x, *_reference_eyes(), name), TOLERANCE[torch.float32]
    )
    spoilt = kernels.gated_linear(torch.cat([x, torch.full((1, 32), torch.nan)]), *weights, name)
    assert torch.equal(spoilt[:2], clean)
    assert spoilt[2].isnan().all()


def _reference_eyes() -> list[PackedLinear]:
    return [ReferenceKernels().pack(torch.eye(32)) for _ in range(2)]


def test_the_reference_takes_blocks_as_their_values():
    kernels = ReferenceKernels()
    stored = [random_weight(seed, FORMATS["q6_k"], 20, 256) for seed in (1, 2)]
    x = randn(3, 4, 256)
    got = kernels.gated_linear(x, *(kernels.pack_stored(each) for each in stored))
    assert torch.equal(got, kernels.gated_linear(x, *(kernels.pack(dequantise(each)) for each in stored)))


def test_blocks_that_do_not_lie_alike_are_refused():
    kernels = native_kernels(AVAILABLE_ISAS[0])
    whole = random_weight(1, FORMATS["q4_k"], 8, 512)
    other = random_weight(1, FORMATS["q6_k"], 4, 256)
    first, later = (kernels.pack_stored(whole.columns(range(at, at + 256))) for at in (0, 64))
    mixed = kernels.pack_stored([other, random_weight(1, FORMATS["q4_k"], 4, 256)])
    for gate, up in ((first, later), (first, mixed), (mixed, first)):
        with pytest.raises(KernelError, match="expected one format in each and one place; dequantise them"):
            kernels.gated_linear(randn(1, 3, 256), gate, up)


@pytest.mark.parametrize(
    ("place", "value"), [(8, 5), (9, -1), (10, -1), (11, -1), (2, 63), (12, 2), (12, -1), (13, 7), (0, None)]
)
def test_the_c_function_refuses_arguments_that_cannot_be(place, value):
    kernels = native_kernels(AVAILABLE_ISAS[0])
    x, out, packed = randn(1, 3, 64), torch.empty(3, 6), kernels.pack(randn(2, 6, 64))
    data = packed.data.data_ptr()
    arguments = [
        kernels.pool.handle, x.data_ptr(), 64, data, None, data, None, out.data_ptr(), 6, 3, 6, 64, 0, 0,
    ]  # fmt: skip
    assert kernels.pool.library.tw_gated_linear(*arguments) == 0
    arguments[place] = value
    assert kernels.pool.library.tw_gated_linear(*arguments) == -1
