"""Every kernel, on every instruction set this CPU has and on CUDA, against the reference within its tolerance."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from support.kernel_cases import (
    DTYPES,
    PagedSequences,
    assert_within,
    contract_backends,
    contract_kernels,
    ints,
    randn,
)
from support.rank_programs import norms_of
from tokenweave.errors import KernelError
from tokenweave.kernels import (
    FORMATS,
    HeadLayout,
    NativeKernels,
    ReferenceKernels,
    ResidualNorms,
    activation,
    attention,
    checks,
    gated_linear,
    linear,
    make_kernels,
    norms,
    quantise,
    rotary,
)

REFERENCE = ReferenceKernels()
LAYOUTS = [
    HeadLayout(9, (0, 0, 0, 1, 1, 1, 2, 2, 2), 64),  # SmolLM2
    HeadLayout(5, (0, 0, 0, 0, 1), 80),  # a share of uneven heads
    HeadLayout(4, (0, 1, 2, 3), 128),
    HeadLayout(60, (0,) * 60, 16),  # more heads of one group than an item takes rows
]


@pytest.fixture(params=contract_backends())
def kernels(request):
    return contract_kernels(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 96, 576), (13, 70, 77), (40, 1, 64), (25, 33, 2048), (3, 64, 1), (0, 64, 64)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_equals_reference(kernels, dtype, m, n, k, with_bias):
    x, weight = randn(1, m, k, dtype=dtype), (randn(2, n, k) * k**-0.5).to(dtype)
    bias = randn(3, n) if with_bias else None
    got = kernels.linear(x, kernels.pack(weight, bias))
    assert_within(got, REFERENCE.linear(x, REFERENCE.pack(weight, bias)), linear.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 96, 576), (13, 70, 77), (40, 1, 64), (400, 33, 64), (0, 64, 64)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_linear_equals_reference(kernels, dtype, name, m, n, k, with_bias):
    x, weights = randn(1, m, k, dtype=dtype), [(randn(i, n, k) * k**-0.5).to(dtype) for i in (2, 3)]
    biases = [randn(i, n) if with_bias else None for i in (4, 5)]
    got, expected = (
        each.gated_linear(x, *(each.pack(w, b) for w, b in zip(weights, biases, strict=True)), name)
        for each in (kernels, REFERENCE)
    )
    assert_within(got, expected, gated_linear.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_writes_float32_and_into_strided_rows(kernels, dtype):
    wide_x, weight = randn(1, 7, 100, dtype=dtype), randn(2, 50, 64, dtype=dtype) / 8
    x, out = wide_x[:, 10:74], torch.full((7, 60), 5.0)
    kernels.linear(x, kernels.pack(weight), out=out[:, :50])
    torch.testing.assert_close(out[:, :50], x.float() @ weight.float().T, rtol=1e-4, atol=1e-4)
    assert (out[:, 50:] == 5.0).all()


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_pack_converts_and_copies_the_weight(kernels, source, target):
    weight = randn(1, 45, 51, dtype=source)
    expected = weight.to(target, copy=True)
    packed = kernels.pack(weight, dtype=target)
    weight.zero_()
    assert packed.dtype == target
    assert torch.equal(kernels.gather_rows(packed, torch.arange(45, dtype=torch.int32)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_outside_the_weight_gather_as_zero(kernels, dtype):
    weight = randn(1, 40, 64, dtype=dtype)
    got = kernels.gather_rows(kernels.pack(weight), ints(99, 100, 139, 140, -1), first_row=100)
    zero = torch.zeros(64, dtype=dtype)
    assert torch.equal(got, torch.stack([zero, weight[0], weight[39], zero, zero]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "h"), [(1, 576), (33, 77), (0, 64), (70, 1024)])
def test_rms_norm_equals_reference(kernels, dtype, m, h):
    x, weight = randn(1, m, h, dtype=dtype), randn(2, h, dtype=dtype)
    expected = REFERENCE.rms_norm(x, weight, 1e-5)
    assert_within(kernels.rms_norm(x, weight, 1e-5), expected, norms.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_sums_into_a_float32_residual(kernels, dtype):
    hidden, weight = randn(1, 9, 577, dtype=dtype), randn(2, 577, dtype=dtype)
    residual = randn(3, 9, 577)
    expected_residual = residual.clone()
    expected = REFERENCE.add_rms_norm(hidden, expected_residual, ResidualNorms(weight, 1e-5))
    out = torch.empty_like(hidden)
    assert kernels.add_rms_norm(hidden, residual, ResidualNorms(weight, 1e-5), out=out) is out
    assert torch.equal(residual, expected_residual)
    assert_within(out, expected, norms.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["after", "both", "neither"])
def test_add_rms_norm_takes_a_norm_after_the_sublayer_and_may_lack_the_one_before_the_next(
    kernels, dtype, kind
):
    hidden, weight, residual = randn(1, 9, 577, dtype=dtype), randn(2, 577, dtype=dtype), randn(3, 9, 577)
    around = norms_of(kind, weight, 1e-5)
    expected_residual = residual.clone()
    expected = REFERENCE.add_rms_norm(hidden, expected_residual, around)
    assert_within(kernels.add_rms_norm(hidden, residual, around), expected, norms.TOLERANCE[dtype])
    torch.testing.assert_close(residual, expected_residual, rtol=1e-5, atol=1e-5)


def test_the_residual_that_is_given_on_is_a_copy():
    """Of float32 too: the caller may write to what it gets."""
    residual = randn(1, 3, 64)
    given = REFERENCE.add_rms_norm(randn(2, 3, 64), residual, ResidualNorms(None, 1e-5))
    before = residual.clone()
    given.zero_()
    assert torch.equal(residual, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", ["silu_and_mul", "gelu_tanh_and_mul"])
def test_a_gate_equals_its_reference_to_the_extremes(kernels, dtype, gate):
    gate_up = randn(1, 20, 2 * 77, dtype=dtype)
    gate_up[:, :10] *= 100
    got, expected = getattr(kernels, gate)(gate_up), getattr(REFERENCE, gate)(gate_up)
    assert_within(got, expected, activation.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", LAYOUTS)
@pytest.mark.parametrize("head_norms", [False, True])
def test_rope_rotates_q_as_the_reference(kernels, dtype, heads, head_norms):
    got, expected = (
        rotated_q(PagedSequences(k, heads, [40], dtype, head_norms=head_norms)) for k in (kernels, REFERENCE)
    )
    assert_within(got, expected, rotary.TOLERANCE[dtype])


def rotated_q(sequences):
    batch = sequences.batch([(0, 0, 40)])
    return sequences.kernels.rope_and_store(sequences.qkv[0], sequences.cache, batch, sequences.layer())


MASKS = [(None, None), (1, None), (37, None), (None, 0.5), (37, 50.0)]  # a sliding window and a softcap


def attention_cases():
    """All heads meet all masks in one of the dtypes, and in the other one in the slow tests."""
    for (h, heads), (sliding_window, softcap), (d, dtype) in product(
        enumerate(LAYOUTS), MASKS, enumerate(DTYPES)
    ):
        is_slow = (h + (softcap is not None) + d) % 2 == 1
        yield pytest.param(dtype, heads, sliding_window, softcap, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize(("dtype", "heads", "sliding_window", "softcap"), list(attention_cases()))
def test_attention_equals_reference(kernels, dtype, heads, sliding_window, softcap):
    expected = reference_attention(heads, dtype, sliding_window, softcap)
    sequences = PagedSequences(kernels, heads, LENGTHS, dtype)
    for batch, rows in zip(BATCHES, expected, strict=True):
        assert_within(sequences.forward(batch, sliding_window, softcap), rows, attention.TOLERANCE[dtype])


LENGTHS = [1, 130, 17, 200]
BATCHES = [
    [(0, 0, 1), (1, 0, 129), (2, 0, 12), (3, 0, 150)],  # prefill
    [(3, 150, 200), (1, 129, 130), (2, 12, 17)],  # the rest of a prompt, a decoded token, both
]


@cache
def reference_attention(heads, dtype, sliding_window, softcap):
    sequences = PagedSequences(REFERENCE, heads, LENGTHS, dtype)
    return [sequences.forward(batch, sliding_window, softcap) for batch in BATCHES]


def test_a_softcap_bounds_scores_before_the_mask():
    """By hand: scores of 0, 8 and 16 capped to 2 * tanh(s / 2); the key that lies outside the window weighs nothing."""
    heads = HeadLayout(1, (0,), 16)
    sequences = PagedSequences(REFERENCE, heads, [3], torch.float32)
    q, k, v = sequences.qkv[0].fill_(0).chunk(3, dim=1)
    q[2, 0], k[1, 0], k[2, 0] = 4.0, 8.0, 16.0
    v[:, 0] = torch.tensor([5.0, 1.0, 2.0])
    sequences.cos_sin.fill_(0)[:, :8] = 1.0
    weights = torch.tensor([2 * math.tanh(4.0), 2 * math.tanh(8.0)]).softmax(0)
    attended = sequences.forward([(0, 0, 3)], sliding_window=2, softcap=2.0)
    torch.testing.assert_close(attended[2, 0], weights[0] + 2 * weights[1])


def test_a_softcap_keeps_nan_and_the_largest_scores(kernels):
    sequences = PagedSequences(kernels, LAYOUTS[0], [70, 33], torch.float32)
    sequences.qkv[0].mul_(1e15)
    assert torch.isfinite(sequences.forward([(0, 0, 70)], softcap=50.0)).all()
    sequences.qkv[0].fill_(float("nan"))
    both = sequences.forward([(0, 0, 70), (1, 0, 33)], softcap=50.0)
    assert both[:70].isnan().all()
    assert torch.isfinite(both[70:]).all()


def test_a_rank_without_heads_has_empty_attention(kernels):
    sequences = PagedSequences(kernels, HeadLayout(0, (), 64), [20], torch.bfloat16)
    assert sequences.forward([(0, 0, 20)]).shape == (20, 0)


def test_large_scores_do_not_overflow(kernels):
    sequences = PagedSequences(kernels, LAYOUTS[0], [100], torch.float32)
    sequences.qkv[0].mul_(200)
    assert torch.isfinite(sequences.forward([(0, 0, 100)])).all()


def test_one_sequences_nan_stays_its_own(kernels):
    sequences = PagedSequences(kernels, LAYOUTS[0], [70, 33], torch.bfloat16)
    clean = sequences.forward([(1, 0, 33)])
    sequences.qkv[0].fill_(float("nan"))
    both = sequences.forward([(0, 0, 70), (1, 0, 33)])
    assert both[:70].isnan().all()
    assert torch.equal(both[70:], clean)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_arguments_raise_and_say_what_was_expected(backend):
    kernels, heads = make_kernels(backend), LAYOUTS[0]
    packed, x = kernels.pack(randn(1, 32, 64)), randn(2, 3, 64)
    stored = kernels.pack_stored(quantise(randn(1, 32, 64), FORMATS["q8_0"]))
    sequences = PagedSequences(kernels, heads, [20], torch.float32)
    batch, layer, qkv, cache = (
        sequences.batch([(0, 0, 20)]),
        sequences.layer(),
        sequences.qkv[0],
        sequences.cache,
    )
    q = qkv[:, : 9 * 64]

    def rope(**changed):
        kernels.rope_and_store(qkv, cache, replace(batch, **changed), layer)

    def attend(**changed):
        kernels.paged_attention(q, cache, replace(batch, **changed), layer)

    cases = [
        (lambda: kernels.linear(x[:, :63], packed), r"\(3, 63\).*expected torch.float32 \(3, 64\)"),
        (lambda: kernels.linear(x.bfloat16(), packed), "torch.bfloat16.*expected torch.float32"),
        (lambda: kernels.linear(x.T[:3].T, packed), "expected"),
        (lambda: kernels.linear(x, packed, out=torch.empty(3, 31)), r"expected torch.float32 \(3, 32\)"),
        (lambda: kernels.linear(torch.tensor(1.0), packed), "expected"),
        (
            lambda: kernels.gated_linear(x[:, :63], packed, packed),
            r"\(3, 63\).*expected torch.float32 \(3, 64\)",
        ),
        (
            lambda: kernels.gated_linear(x, packed, kernels.pack(x)),
            "gate has 32 rows .*up 3 .*expected both alike",
        ),
        (lambda: kernels.gated_linear(x, packed, packed, "relu"), "'relu', expected one of silu, gelu_tanh"),
        (lambda: kernels.gated_linear(x, packed, stored), "stored as None and q8_0, expected both"),
        (lambda: kernels.pack(x.double()), "torch.float64, expected torch.float32, torch.bfloat16 or"),
        (lambda: kernels.pack(x, randn(1, 4)), r"bias is .*\(4,\).*expected torch.float32 \(3,\)"),
        (lambda: kernels.gather_rows(packed, torch.arange(3)), "int64.*expected torch.int32"),
        (lambda: kernels.rms_norm(x, x[0, :5], 1e-5), r"weight is .*\(5,\).*expected torch.float32 \(64,\)"),
        (lambda: kernels.add_rms_norm(x, x[:2], ResidualNorms(x[0], 1e-5)), "residual is .*expected"),
        (lambda: kernels.silu_and_mul(x[:, :5]), "5 columns, expected an even number"),
        (lambda: rope(rotation_rows=ints(*range(1, 21))), r"rotation_rows span 1..20, expected 0..19"),
        (lambda: rope(slots=ints(*range(70, 90))), r"slots span 70..89, expected 0..79"),
        (lambda: rope(rotations=randn(3, 20, 32)), "rotations are 32 wide, expected head_dim, 64"),
        (lambda: rope(rotations=randn(3, 20)), r"rotations is .*\(20,\)"),
        (lambda: rope(slots=ints(*range(19))), r"slots is .*\(19,\).*expected torch.int32 \(20,\)"),
        (lambda: kernels.rope_and_store(qkv[:5], cache, batch, layer), "qkv has 5 rows, expected 20"),
        (lambda: kernels.paged_attention(q[:5], cache, batch, layer), "q has 5 rows, expected 20"),
        (lambda: replace(layer, q_norm=x[0]), "go together"),
        (lambda: attend(seq_lens=ints(4)), "has 4 keys, expected"),
        (lambda: attend(seq_lens=ints(33)), "has 33 keys, expected"),
        (lambda: attend(seq_lens=ints(20, 1)), r"query_start is .*expected torch.int32 \(3,\)"),
        (lambda: attend(block_tables=batch.block_tables + 5), "names blocks"),
        (lambda: attend(block_tables=batch.block_tables[0]), "block_tables is"),
        (lambda: attend(query_start=ints(0, 4)), "to the 20 tokens"),
        (lambda: replace(layer, scale=0.0), "scale is 0.0"),
        (lambda: replace(layer, sliding_window=0), "sliding_window is 0"),
        (lambda: replace(layer, softcap=-1.0), "softcap is -1.0"),
        (lambda: kernels.paged_attention(q, cache[:, :1], batch, layer), "cache_layer is"),
    ]
    for call, message in cases:
        with pytest.raises(KernelError, match=message):
            call()


def test_the_reference_checks_the_indices_of_a_batch_once_for_all_layers(monkeypatch):
    sequences, checked = PagedSequences(REFERENCE, LAYOUTS[0], [20], torch.float32), []
    monkeypatch.setattr(checks, "check_sequences", lambda *args: checked.append(args))
    batch, layer = sequences.batch([(0, 0, 20)]), sequences.layer()
    for _ in range(3):
        REFERENCE.rope_and_store(sequences.qkv[0], sequences.cache, batch, layer)
        REFERENCE.paged_attention(sequences.qkv[0][:, : 9 * 64], sequences.cache, batch, layer)
    assert len(checked) == 1


def test_a_weight_packed_by_another_backend_is_refused():
    packed = make_kernels("reference").pack(randn(1, 32, 64))
    with pytest.raises(KernelError, match="packed as 'reference', expected 'native'"):
        make_kernels("native").linear(randn(1, 2, 64), packed)


def test_float16_is_refused_by_native_kernels():
    kernels, x = NativeKernels(), randn(1, 4, 64).half()
    norm, stored = torch.ones(64).half(), quantise(randn(1, 32, 64), FORMATS["q8_0"])
    for call in (
        lambda: kernels.pack(x),
        lambda: kernels.pack_stored(stored, dtype=torch.float16),
        lambda: kernels.rms_norm(x, norm, 1e-5),
        lambda: kernels.silu_and_mul(x),
        lambda: kernels.new_kv_cache(1, 1, LAYOUTS[0], torch.float16),
    ):
        with pytest.raises(
            KernelError, match=r"dtype is torch.float16, expected torch.float32 or torch.bfloat16"
        ):
            call()
    assert torch.float16 not in kernels.dtypes
    assert REFERENCE.rms_norm(x, norm, 1e-5).dtype is torch.float16


@pytest.mark.parametrize("make", [ReferenceKernels, NativeKernels])
def test_fp8_is_refused_by_kernels_for_cpus(make):
    with pytest.raises(KernelError, match=r"kernels do not multiply weights in fp8, \"cuda\" ones do"):
        make().pack_fp8(randn(1, 32, 64))


def test_head_dims_that_native_kernels_lack_point_to_the_reference():
    with pytest.raises(
        KernelError, match='multiple of 16; widen the heads with zeros, or use kernels="reference"'
    ):
        make_kernels("native").new_kv_cache(1, 1, HeadLayout(1, (0,), 24), torch.float32)


@pytest.mark.parametrize(
    ("num_heads", "kv_of_head", "head_dim"), [(2, (0,), 64), (2, (1, 0), 64), (1, (-1,), 64), (1, (0,), 7)]
)
def test_contradicting_head_layouts_are_refused(num_heads, kv_of_head, head_dim):
    with pytest.raises(KernelError):
        HeadLayout(num_heads, kv_of_head, head_dim)


def test_group_start_delimits_each_kv_heads_queries():
    assert HeadLayout(5, (0, 0, 0, 0, 1), 80).group_start == (0, 4, 5)
    assert HeadLayout(0, (), 80).group_start == (0,)


def test_auto_kernels_are_native_where_the_library_loads():
    assert isinstance(make_kernels(), NativeKernels)
    assert isinstance(make_kernels("reference"), ReferenceKernels)
    with pytest.raises(KernelError, match="got 'fast'"):
        make_kernels("fast")
    with pytest.raises(KernelError, match="threads is 0"):
        make_kernels(threads=0)
