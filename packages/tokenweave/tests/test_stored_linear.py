"""The native kernels of stored weights against the values that the weights stand for, on every instruction set here."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.kernel_cases import AVAILABLE_ISAS, DTYPES, assert_within, ints, native_kernels, randn
from support.stored_cases import ALL_FORMATS, random_weight
from tokenweave.errors import KernelError
from tokenweave.kernels import FORMATS, ReferenceKernels, dequantise
from tokenweave.kernels.stored.linear import TOLERANCE

REFERENCE = ReferenceKernels()
SHAPES = [(1, 96, 256), (17, 70, 768), (40, 1, 512), (3, 33, 2048), (0, 64, 256)]
by_format = pytest.mark.parametrize("form", ALL_FORMATS, ids=lambda form: form.name)
TILE_ISAS = [isa for isa in AVAILABLE_ISAS if isa.startswith("amx")]
formats, isas = st.sampled_from(ALL_FORMATS), st.sampled_from(AVAILABLE_ISAS)


@pytest.fixture(params=AVAILABLE_ISAS)
def kernels(request):
    return native_kernels(request.param)


def unit_rows(m, weight, dtype=torch.float32):
    """Rows whose products with the weight have a variance of about 1."""
    values = dequantise(weight)
    return (randn(m + 1, m, weight.k) / (values.square().mean() * weight.k).sqrt().clamp_min(1e-3)).to(dtype)


@by_format
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_stored_linear_is_near_the_product_of_its_values(kernels, form, dtype, m, n, k):
    weight, bias = random_weight(k, form, n, k), randn(3, n)
    x = unit_rows(m, weight, dtype)
    packed = kernels.pack_stored(weight, bias, dtype)
    expected = (x.double() @ dequantise(weight).double().T + bias.double()).to(dtype)
    assert packed.format == form.name
    assert_within(kernels.linear(x, packed), expected, TOLERANCE[dtype])


def test_a_stack_is_the_same_weight_wherever_its_bytes_are(kernels):
    formats = ALL_FORMATS[:3]
    stack = kernels.pack_stored([random_weight(at, form, 40, 512) for at, form in enumerate(formats)])
    x = randn(1, 5, 512)
    expected = kernels.linear(x, stack)
    moved = replace(stack, data=stack.data.clone())
    stack.data.zero_()
    assert torch.equal(kernels.linear(x, moved), expected)


@by_format
def test_rows_of_small_integers_are_multiplied_exactly(kernels, form):
    """An x whose blocks each have 127 as their largest value is its own codes; what is left are float32 sums."""
    weight = random_weight(1, form, 40, 512)
    x = torch.randint(-127, 128, (5, 512), generator=torch.Generator().manual_seed(2)).float()
    x[:, ::32] = 127
    expected = x.double() @ dequantise(weight).double().T
    got = kernels.linear(x, kernels.pack_stored(weight))
    largest = (x.abs().double() @ dequantise(weight).abs().double().T).max().item()
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6 * largest)


@by_format
@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize("extreme", [0, 255])
def test_the_largest_codes_do_not_overflow(kernels, form, extreme, m):
    weight = random_weight(1, form, 32, 256)
    codes = range(2, form.block_bytes - 2) if form.name == "q6_k" else range(16, form.block_bytes)
    weight.blocks.view(32, -1, form.block_bytes)[:, :, codes.start : codes.stop] = extreme
    for sign in (1, -1):
        x = torch.full((m, 256), 127.0 * sign)
        expected = (x.double() @ dequantise(weight).double().T).float()
        got = kernels.linear(x, kernels.pack_stored(weight))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-2)


@by_format
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_looked_up_exactly(kernels, form, dtype):
    weight = random_weight(1, form, 40, 512)
    packed = kernels.pack_stored(weight, dtype=dtype)
    got = kernels.gather_rows(packed, ints(99, 100, 139, 140, -1), first_row=100)
    values, zero = dequantise(weight).to(dtype), torch.zeros(512, dtype=dtype)
    assert torch.equal(got, torch.stack([zero, values[0], values[39], zero, zero]))


@settings(max_examples=60)
@given(formats, isas, st.data())
def test_columns_begin_and_end_anywhere_in_blocks(form, isa, data):
    kernels = native_kernels(isa)
    first = data.draw(st.integers(0, form.block_values - 1))
    k, n, m = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
    weight = random_weight(k, form, n, k, first)
    x = unit_rows(m, weight)
    packed = kernels.pack_stored(weight)
    ids = torch.arange(n, dtype=torch.int32)
    assert torch.equal(kernels.gather_rows(packed, ids), dequantise(weight))
    expected = (x.double() @ dequantise(weight).double().T).float()
    # A single short block may have a share of y far from the deviation that TOLERANCE stands for.
    bound = x.abs().amax().item() / 254 * dequantise(weight).abs().sum(1).max().item()
    torch.testing.assert_close(kernels.linear(x, packed), expected, rtol=1e-5, atol=bound * 1.01 + 1e-6)


def test_a_stack_of_formats_is_its_parts_one_below_the_other(kernels):
    parts = [
        random_weight(i, FORMATS[name], n, 512)
        for i, (name, n) in enumerate([("q4_k", 40), ("q4_k", 8), ("q6_k", 33), ("q8_0", 64)])
    ]
    bias, x, out = randn(1, 145), randn(2, 19, 520)[:, 4:516], torch.full((19, 150), 5.0)
    packed = kernels.pack_stored(parts, bias)
    assert packed.format == "q4_k+q6_k+q8_0"
    kernels.linear(x, packed, out=out[:, :145])
    separate = [kernels.linear(x, kernels.pack_stored(part)) for part in parts]
    assert torch.equal(out[:, :145], torch.cat(separate, dim=1) + bias)
    assert (out[:, 145:] == 5.0).all()
    rows = torch.cat([dequantise(part) for part in parts])
    assert torch.equal(kernels.gather_rows(packed, ints(144, 0, 47, 48, 81)), rows[[144, 0, 47, 48, 81]])


@settings(max_examples=40)
@given(formats, st.sampled_from(DTYPES), st.sampled_from([1, 2, 3]), st.integers(1, 60), st.data())
def test_bits_depend_on_nothing_but_the_row(form, dtype, threads, m, data):
    """Not on the rows beside it, on threads, or on the instruction set."""
    weight = random_weight(m, form, 70, 768)
    x = randn(m, m, 768, dtype=dtype)
    kernels, other = (native_kernels(data.draw(isas), count) for count in (threads, 1))
    whole = kernels.linear(x, kernels.pack_stored(weight, dtype=dtype))
    cuts = sorted({0, m, *data.draw(st.lists(st.integers(0, m), max_size=3))})
    packed = other.pack_stored(weight, dtype=dtype)
    for first, last in pairwise(cuts):
        assert torch.equal(other.linear(x[first:last], packed), whole[first:last])


# Around the fewest rows that go through tiles, and around whole tiles and pairs of them.
TILE_EDGES = (1, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 39, 40, 41, 64, 71)


@settings(max_examples=60)
@given(
    formats,
    st.sampled_from(DTYPES),
    st.sampled_from(TILE_EDGES),
    st.integers(1, 70),
    st.integers(1, 700),
    st.data(),
)
def test_tiles_give_the_bits_of_vectors(form, dtype, m, n, k, data):
    weight = random_weight(k, form, n, k, data.draw(st.integers(0, form.block_values - 1)))
    x = randn(m, m, k, dtype=dtype)
    spoil = data.draw(st.sampled_from([None, float("inf"), 127.0]))
    if spoil is not None:
        x[data.draw(st.integers(0, m - 1))] = spoil
    vectors, *tiles = (native_kernels(isa) for isa in ("baseline", *TILE_ISAS))
    expected = vectors.linear(x, vectors.pack_stored(weight, dtype=dtype))
    for kernels in tiles:
        got = kernels.linear(x, kernels.pack_stored(weight, dtype=dtype))
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@by_format
def test_many_rows_pass_in_blocks_with_the_same_bits(form):
    kernels = native_kernels(AVAILABLE_ISAS[-1])
    weight = random_weight(1, form, 33, 2048)
    x, packed = randn(2, 700, 2048), kernels.pack_stored(weight)
    assert torch.equal(kernels.linear(x, packed)[600:650], kernels.linear(x[600:650], packed))


@by_format
@pytest.mark.parametrize(("m", "value"), [(4, float("nan")), (4, float("inf")), (18, float("nan"))])
def test_a_rows_nan_stays_its_own(kernels, form, m, value):
    weight = random_weight(1, form, 33, 512)
    x, packed = randn(2, m, 512), kernels.pack_stored(weight)
    clean = kernels.linear(x, packed)
    x[1, 300] = value
    spoilt = kernels.linear(x, packed)
    assert spoilt[1].isnan().all()
    others = torch.arange(m) != 1
    assert torch.equal(spoilt[others], clean[others])


def test_the_smallest_and_the_largest_rows_stay_finite(kernels):
    packed = kernels.pack_stored(random_weight(1, FORMATS["q8_0"], 8, 64))
    x = torch.tensor([1e-44, 1e-38, 1e-30, 1e36]).unsqueeze(1).expand(4, 64).contiguous()
    got = kernels.linear(x, packed)
    assert torch.isfinite(got).all()
    assert not got[:2].any()


@by_format
def test_a_packed_weight_takes_hardly_more_than_its_file(form):
    kernels = native_kernels(AVAILABLE_ISAS[0])
    weight = random_weight(1, form, 96, 512)
    assert kernels.pack_stored(weight).size_bytes <= 1.04 * weight.size_bytes


def test_a_float16_scale_of_any_size_is_read_as_torch_reads_it(kernels):
    """Subnormal, negative, infinite and NaN scales too."""
    halves = torch.arange(0, 1 << 16, 7, dtype=torch.int32).to(torch.int16)
    blocks = torch.zeros(len(halves), 34, dtype=torch.uint8)
    blocks[:, :2] = halves.unsqueeze(1).view(torch.uint8)
    blocks[:, 2:] = 1
    weight = random_weight(1, FORMATS["q8_0"], len(halves), 32)
    weight.blocks.copy_(blocks)
    got = kernels.gather_rows(kernels.pack_stored(weight), torch.arange(len(halves), dtype=torch.int32))
    assert torch.equal(got.nan_to_num(7.0), dequantise(weight).nan_to_num(7.0))


def test_stacks_that_do_not_fit_are_refused(kernels):
    weight = random_weight(1, FORMATS["q4_k"], 8, 512)
    cases = [
        (
            lambda: kernels.pack_stored([weight.columns(range(32)), weight.columns(range(64, 96))]),
            r"\[0, 64\]",
        ),
        (lambda: kernels.pack_stored([weight] * 9), "9 stored weights .*at most 8"),
        (
            lambda: kernels.linear(randn(1, 3, 511), kernels.pack_stored(weight)),
            r"expected torch.float32 \(3, 512\)",
        ),
        (
            lambda: kernels.linear(randn(1, 3, 512).bfloat16(), kernels.pack_stored(weight)),
            "expected torch.float32",
        ),
    ]
    for call, message in cases:
        with pytest.raises(KernelError, match=message):
            call()
