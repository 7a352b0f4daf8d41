"""Where the tensors of kernels lie: all on one device, which may have no values for the host to read."""

from __future__ import annotations

import pytest
import torch

from support.kernel_cases import DTYPES, PagedSequences, assert_within, ints, randn
from tokenweave.communicators import NullCommunicator
from tokenweave.errors import KernelError
from tokenweave.kernels import (
    AttentionBatch,
    AttentionLayer,
    HeadLayout,
    NativeKernels,
    ReferenceKernels,
    ResidualNorms,
    attention,
    make_kernels,
)
from tokenweave.kernels.stored.formats import FORMATS
from tokenweave.kernels.stored.quantise import quantise

META = torch.device("meta")
HEADS = HeadLayout(5, (0, 0, 0, 0, 1), 32)
LENGTHS = [3, 40, 17]
CHUNKS = [(0, 0, 3), (1, 20, 40), (2, 16, 17)]
BATCH_TENSORS = ("rotations", "rotation_rows", "slots", "block_tables", "query_start", "seq_lens")


def on(device: torch.device, batch: AttentionBatch) -> AttentionBatch:
    return AttentionBatch(*(getattr(batch, name).to(device) for name in BATCH_TENSORS))


@pytest.fixture
def sequences():
    return PagedSequences(ReferenceKernels(), HEADS, LENGTHS, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, None), (None, 2.0)])
def test_masked_attention_is_paged_attention(dtype, window, softcap):
    sequences = PagedSequences(ReferenceKernels(), HEADS, LENGTHS, dtype)
    whole = [(s, 0, length) for s, length in enumerate(LENGTHS)]
    sequences.forward(whole)
    batch, layer = sequences.batch(CHUNKS), sequences.layer(window, softcap)
    q = randn(9, batch.num_tokens, HEADS.num_heads * HEADS.head_dim, dtype=dtype)
    expected = attention.reference_paged_attention(q, sequences.cache, batch, layer)
    got = attention.reference_masked_attention(q, sequences.cache, batch, layer)
    assert_within(got, expected, attention.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_runs_on_a_device_without_values(dtype):
    here, there = ReferenceKernels(), ReferenceKernels(device="meta")
    x, weight, bias = randn(1, 6, 64, dtype=dtype), randn(2, 64, 64, dtype=dtype), randn(3, 64)
    norm, residual = randn(4, 64, dtype=dtype), randn(5, 6, 64)
    stored = quantise(randn(6, 32, 64), FORMATS["q8_0"])
    norms = ResidualNorms(norm, 1e-5, norm)
    moved_norms = ResidualNorms(norm.to(META), 1e-5, norm.to(META))
    moved = x.to(META)
    results = [
        (kernels.linear(rows, kernels.pack(weight, bias)),
         kernels.linear(rows, kernels.pack_stored(stored, dtype=dtype)),
         kernels.gated_linear(rows, kernels.pack(weight), kernels.pack(weight), "gelu_tanh"),
         kernels.gather_rows(kernels.pack(weight), ids, 3),
         kernels.rms_norm(rows, scale, 1e-5),
         kernels.add_rms_norm(rows, sums, both),
         kernels.silu_and_mul(rows),
         kernels.gelu_tanh_and_mul(rows))
        for kernels, rows, ids, scale, sums, both in (
            (here, x, ints(1, 5), norm, residual, norms),
            (there, moved, ints(1, 5).to(META), norm.to(META), residual.to(META), moved_norms),
        )
    ]  # fmt: skip
    for got, expected in zip(*reversed(results), strict=True):
        assert (got.device, got.shape, got.dtype) == (META, expected.shape, expected.dtype)


@pytest.mark.parametrize("head_norms", [False, True])
def test_attention_runs_on_a_device_without_values(head_norms):
    sequences = PagedSequences(ReferenceKernels(), HEADS, LENGTHS, torch.float32, head_norms=head_norms)
    kernels = ReferenceKernels(device="meta")
    batch, layer = on(META, sequences.batch(CHUNKS)), sequences.layer(7, 2.0)
    if layer.q_norm is not None and layer.k_norm is not None:
        layer = AttentionLayer(HEADS, layer.scale, 7, 2.0, layer.q_norm.to(META), layer.k_norm.to(META))
    cache = kernels.new_kv_cache(1, 9, HEADS, torch.float32)
    qkv = torch.empty(batch.num_tokens, 9 * HEADS.head_dim, device=META)
    q = kernels.rope_and_store(qkv, cache[0], batch, layer)
    attended = kernels.paged_attention(q, cache[0], batch, layer)
    with pytest.raises(RuntimeError, match="meta"):  # it would make the host wait
        attention.reference_paged_attention(q, cache[0], batch, layer)
    assert {batch.device, cache.device, q.device, attended.device} == {META}
    assert attended.shape == q.shape == (batch.num_tokens, 5 * HEADS.head_dim)


@pytest.mark.parametrize("name", BATCH_TENSORS[1:])
def test_a_batch_lies_on_one_device(sequences, name):
    batch = sequences.batch(CHUNKS)
    tensors = {each: getattr(batch, each) for each in BATCH_TENSORS}
    tensors[name] = tensors[name].to(META)
    with pytest.raises(KernelError, match=f"{name} is .* on meta .*expected .* on the CPU"):
        AttentionBatch(**tensors)


def test_the_norms_of_a_layer_lie_on_one_device():
    here, there = torch.ones(32), torch.ones(32, device=META)
    with pytest.raises(KernelError, match=r"k_norm is .* on cpu .*expected .* on meta"):
        AttentionLayer(HEADS, 1.0, q_norm=there, k_norm=here)
    with pytest.raises(KernelError, match="post_weight lies on meta, expected on the CPU"):
        ResidualNorms(here, 1e-5, there)


def test_native_kernels_refuse_what_lies_elsewhere(sequences):
    kernels, rows = NativeKernels(), torch.ones(2, 32, device=META)
    qkv, cache = torch.zeros(24, 9 * 32), torch.zeros(9, *HEADS.block_shape)
    away = AttentionLayer(HEADS, 1.0, q_norm=rows[0], k_norm=rows[1])
    batch, layer = sequences.batch(CHUNKS), sequences.layer()
    for call, message in (
        (lambda: kernels.rms_norm(rows, rows[0], 1e-5), "x is .* on meta .*expected .* on the CPU"),
        (lambda: kernels.rope_and_store(qkv, cache, on(META, batch), layer), "the batch lies on meta"),
        (lambda: kernels.rope_and_store(qkv, cache, batch, away), "q_norm lies on meta, expected on the CPU"),
    ):
        with pytest.raises(KernelError, match=message):
            call()


def test_kernels_of_a_device_refuse_what_lies_on_the_cpu(sequences):
    kernels, rows = ReferenceKernels(device="meta"), torch.ones(2, 32)
    batch, layer = sequences.batch(CHUNKS), sequences.layer()
    there = on(META, batch)
    away = AttentionLayer(HEADS, 1.0, q_norm=rows[0], k_norm=rows[1])
    cache = kernels.new_kv_cache(1, 9, HEADS, torch.float32)[0]
    qkv, q = torch.zeros(24, 9 * 32, device=META), torch.zeros(24, 5 * 32, device=META)
    weight = kernels.pack(torch.ones(4, 32))
    for call, message in (
        (lambda: kernels.linear(rows, weight), "x is .* on cpu .*expected .* on meta"),
        (lambda: kernels.linear(rows.to(META), weight, torch.ones(2, 4)), "out is .* on cpu"),
        (lambda: kernels.gated_linear(rows, weight, weight), "x is .* on cpu"),
        (lambda: kernels.gather_rows(weight, ints(1)), "ids is .* on cpu"),
        (lambda: kernels.rms_norm(rows, rows[0], 1e-5), "x is .* on cpu"),
        (lambda: kernels.rms_norm(rows.to(META), rows[0], 1e-5), "weight is .* on cpu"),
        (
            lambda: kernels.add_rms_norm(rows.to(META), rows, ResidualNorms(None, 1e-5)),
            "residual is .* on cpu",
        ),
        (lambda: kernels.silu_and_mul(rows), "gate_up is .* on cpu"),
        (lambda: kernels.rope_and_store(torch.zeros(24, 9 * 32), cache, there, layer), "qkv is .* on cpu"),
        (
            lambda: kernels.rope_and_store(qkv, cache, batch, layer),
            "the batch lies on the CPU, expected on meta",
        ),
        (lambda: kernels.rope_and_store(qkv, cache, there, away), "q_norm lies on the CPU, expected on meta"),
        (lambda: kernels.paged_attention(q, sequences.cache, there, layer), "cache_layer is .* on cpu"),
    ):
        with pytest.raises(KernelError, match=message):
            call()


def test_partial_sums_lie_where_the_kernels_compute():
    communicator = NullCommunicator(kernels=ReferenceKernels(device="meta"))
    assert communicator.new_partial(3, 32, torch.bfloat16).device == META
    residual = communicator.new_residual(3, 32, torch.bfloat16)
    assert (residual.device, residual.shape, residual.dtype) == (META, (3, 32), torch.float32)


class Sharing(NullCommunicator):
    """Behaves as rank 0 of several that share the residual's rows: rows 2 to 4 of five are its own."""

    def is_residual_sharded(self, num_tokens, hidden_size, dtype):
        return True

    def owned_rows(self, num_tokens, hidden_size, dtype):
        return range(2, 5)


def test_rows_of_a_shared_residual_are_chosen_and_foreign_ones_are_zero():
    residual = randn(1, 5, 32)
    residual[:2] = float("nan")
    rows = ints(0, 2, 4)
    got = Sharing().select_residual(residual, rows, 5, torch.float32)
    assert torch.equal(got, torch.stack([torch.zeros(32), residual[2], residual[4]]))
    owned = Sharing().select_residual(residual[2:], rows, 5, torch.float32)
    assert torch.equal(owned, got)
    there = Sharing(kernels=ReferenceKernels(device="meta"))
    for rows_kept in (residual, residual[2:], residual[:0]):
        assert there.select_residual(rows_kept.to(META), rows.to(META), 5, torch.float32).shape == (3, 32)


def test_kernels_are_made_for_a_device():
    assert make_kernels("reference", device="meta").device == META
    assert make_kernels("native").device == torch.device("cpu")
    with pytest.raises(KernelError, match="'native' kernels compute on the CPU, got device meta"):
        make_kernels("native", device="meta")
