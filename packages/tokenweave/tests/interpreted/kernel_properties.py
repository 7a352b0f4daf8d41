"""The promises of CudaKernels beyond the contract of kernels, under the interpreter. Run by test_fake_cuda.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.kernel_cases import DTYPES, PagedSequences, assert_within, contract_kernels, ints, randn
from support.rank_programs import norms_of
from support.recorded import WAITS, Recorded
from tokenweave.errors import KernelError
from tokenweave.kernels import (
    HeadLayout,
    ReferenceKernels,
    ResidualNorms,
    linear,
    make_kernels,
    norms,
    rotary,
)
from tokenweave.kernels.cuda.backend.norms import MAX_ROW

REFERENCE = ReferenceKernels()
HEADS = HeadLayout(5, (0, 0, 0, 0, 1), 24)


@pytest.fixture(scope="module")
def kernels():
    return contract_kernels("cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["before", "after", "both", "neither"])
def test_rows_longer_than_registers_hold_are_normed_in_pieces(kernels, dtype, kind):
    h = MAX_ROW + 12
    hidden, weight, residual = randn(1, 2, h, dtype=dtype), randn(2, h, dtype=dtype), randn(3, 2, h)
    expected_residual, around = residual.clone(), norms_of(kind, weight, 1e-5)
    expected = REFERENCE.add_rms_norm(hidden, expected_residual, around)
    assert_within(kernels.add_rms_norm(hidden, residual, around), expected, norms.TOLERANCE[dtype])
    torch.testing.assert_close(residual, expected_residual, rtol=1e-5, atol=1e-5)
    expected = REFERENCE.rms_norm(hidden, weight, 1e-5)
    assert_within(kernels.rms_norm(hidden, weight, 1e-5), expected, norms.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_wider_matrices_are_read_and_written_where_they_are(kernels, dtype):
    wide, weight = randn(1, 3, 200, dtype=dtype), randn(2, 64, dtype=dtype)
    wide_residual, wide_out = randn(3, 3, 90), torch.full((3, 100), 5.0, dtype=dtype)
    x, residual, out = wide[:, 8:72], wide_residual[:, 4:68], wide_out[:, 1:65]
    expected_residual = residual.clone()
    expected = REFERENCE.add_rms_norm(x, expected_residual, ResidualNorms(weight, 1e-5))
    untouched = torch.cat([wide_residual[:, :4], wide_residual[:, 68:]], dim=1)
    kernels.add_rms_norm(x, residual, ResidualNorms(weight, 1e-5), out)
    assert_within(out, expected, norms.TOLERANCE[dtype])
    assert torch.equal(residual, expected_residual)
    assert torch.equal(torch.cat([wide_residual[:, :4], wide_residual[:, 68:]], dim=1), untouched)
    assert (torch.cat([wide_out[:, :1], wide_out[:, 65:]], dim=1) == 5.0).all()
    gate_up = wide[:, :90]
    assert torch.equal(kernels.silu_and_mul(gate_up), kernels.silu_and_mul(gate_up.contiguous()))
    qkv = randn(4, 20, 400, dtype=dtype)[:, : 9 * 24]
    assert torch.equal(stored_q(kernels, qkv), stored_q(kernels, qkv.contiguous()))


def stored_q(kernels, qkv):
    sequences = PagedSequences(kernels, HEADS, [20], qkv.dtype)
    batch, layer = sequences.batch([(0, 0, 20)]), sequences.layer()
    q = kernels.rope_and_store(qkv, sequences.cache, batch, layer)
    wide_q = torch.cat([q, q], dim=1)
    attended = kernels.paged_attention(wide_q[:, : q.shape[1]], sequences.cache, batch, layer)
    return torch.cat([q, attended])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_is_added_before_a_product_is_rounded(kernels, dtype):
    """One that bfloat16 holds goes with the product, another is added to it in float32."""
    x, weight, exact = (
        randn(1, 9, 64, dtype=dtype),
        randn(2, 40, 64, dtype=dtype) / 8,
        randn(3, 40).bfloat16(),
    )
    for bias in (exact, exact.float() * 1.001):
        packed = kernels.pack(weight, bias)
        expected = REFERENCE.linear(x, REFERENCE.pack(weight, bias))
        assert_within(kernels.linear(x, packed), expected, linear.TOLERANCE[dtype])
        wide = kernels.linear(x, packed, out=torch.empty(9, 40))
        torch.testing.assert_close(wide, x.float() @ weight.float().T + bias.float(), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_once_in_a_gated_linear(kernels):
    """64.5 * (1 + 2**-8) is nearer to 65; an up that were rounded by itself would be 1, and the result 64.5."""
    x, gate = (torch.tensor([values], dtype=torch.bfloat16) for values in ([1.0, 2.0**-8], [64.5, 0.0]))
    weights = [kernels.pack(each) for each in (gate, torch.ones_like(gate))]
    assert kernels.gated_linear(x, *weights).item() == 65.0


def test_values_are_rounded_to_the_nearest_and_ties_to_even(kernels):
    hidden = torch.tensor([[1.0, 3.0, 5.0, -7.0, 0.0, 3e38, float("inf"), float("nan")]])
    hidden = (hidden * (1 + 2.0**-8)).to(torch.float32)
    given = kernels.add_rms_norm(torch.zeros(1, 8).bfloat16(), hidden, ResidualNorms(None, 1e-5))
    torch.testing.assert_close(given, hidden.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slots_and_rotations_out_of_range_write_nothing(kernels, dtype):
    sequences = PagedSequences(kernels, HEADS, [40], dtype)
    num_blocks = len(sequences.cache)
    whole = torch.full((num_blocks + 2, *HEADS.block_shape), 7.0, dtype=dtype)
    cache, batch = whole[1:-1], sequences.batch([(0, 0, 40)])
    slots, rows = batch.slots.clone(), batch.rotation_rows.clone()
    lost, unturned = [0, 5, 6, 7, 39], [3, 4, 12]
    slots[lost] = ints(-1, -17, num_blocks * 16, 2**31 - 1, -(2**31))
    rows[unturned] = ints(-1, 40, 2**31 - 1)
    spoiled = replace(batch, rotation_rows=rows, slots=slots)
    q = kernels.rope_and_store(sequences.qkv[0], cache, spoiled, sequences.layer())
    good = torch.full_like(cache, 7.0)
    expected = REFERENCE.rope_and_store(sequences.qkv[0], good, batch, sequences.layer())
    kept = [t for t in range(40) if t not in (*lost, *unturned)]
    assert_within(q[kept], expected[kept], rotary.TOLERANCE[dtype])
    assert (q[unturned] == 0).all()
    got, wanted = (of_slots(each, HEADS) for each in (cache, good))
    assert_within(got[slots[kept].long()], wanted[slots[kept].long()], rotary.TOLERANCE[dtype])
    written = {int(slot) for t, slot in enumerate(slots) if t not in lost}
    untouched = [slot for slot in range(num_blocks * 16) if slot not in written]
    assert (got[untouched] == 7.0).all()
    assert (whole[[0, -1]] == 7.0).all()


def of_slots(cache, heads):
    """(slots, 2, num_kv_heads, head_dim): the keys and values of each slot."""
    blocks = cache.view(-1, 2, heads.num_kv_heads, 16, heads.head_dim)
    return blocks.permute(0, 3, 1, 2, 4).flatten(0, 1)


def test_no_kernel_reads_a_tensor_on_the_host(kernels):
    """So none waits for a device, and a graph can capture all of them."""
    sequences = PagedSequences(kernels, HEADS, [700, 3], torch.float32, head_norms=True)
    chunks = [(0, 690, 700), (1, 0, 3)]
    batch, layer = sequences.batch(chunks), sequences.layer(300, 20.0)
    qkv = torch.cat([sequences.qkv[s][first:last] for s, first, last in chunks])
    sequences.cache.zero_()
    x, weight = randn(1, 4, 64), randn(2, 64)
    packed, around = kernels.pack(randn(3, 64, 64), randn(4, 64)), ResidualNorms(weight, 1e-5, weight)
    residual, inner = x.clone(), kernels.inner
    with Recorded() as seen:
        q = inner.rope_and_store(qkv, sequences.cache, batch, layer)
        inner.paged_attention(q, sequences.cache, batch, layer)
        inner.add_rms_norm(inner.gated_linear(x, packed, packed), residual, around)
        inner.rms_norm(inner.linear(x, packed), weight, 1e-5)
        inner.silu_and_mul(inner.gather_rows(packed, ints(1, 2)))
    assert "aten::mm" in seen.names
    assert not seen.names & WAITS


def test_a_weight_packed_by_another_backend_is_refused(kernels):
    with pytest.raises(KernelError, match="packed as 'reference', expected 'cuda'"):
        kernels.linear(randn(1, 2, 64), REFERENCE.pack(randn(1, 32, 64)))


def test_it_says_what_it_is(kernels):
    assert (kernels.name, kernels.threads, kernels.device.type) == ("cuda", 1, "cpu")
    assert kernels.new_kv_cache(2, 3, HEADS, torch.bfloat16).shape == (2, 3, *HEADS.block_shape)
    with pytest.raises(KernelError, match="run on CUDA devices, got 'meta'"):
        make_kernels("cuda", device="meta")
