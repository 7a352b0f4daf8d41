"""float16 by CudaKernels under Triton's interpreter, against the reference. Run by test_fake_cuda.py."""

from __future__ import annotations

import pytest
import torch

from support.kernel_cases import PagedSequences, assert_within, contract_kernels, ints, randn
from support.rank_programs import norms_of
from support.stored_cases import random_weight
from tokenweave.kernels import (
    FORMATS,
    HeadLayout,
    ReferenceKernels,
    activation,
    attention,
    dequantise,
    gated_linear,
    linear,
    norms,
    rotary,
)

REFERENCE = ReferenceKernels()
HALF = torch.float16
HEADS = HeadLayout(5, (0, 0, 0, 0, 1), 24)


@pytest.fixture(scope="module")
def kernels():
    return contract_kernels("cuda").inner


def test_products_equal_the_reference(kernels):
    x, weights = randn(1, 9, 77, dtype=HALF), [randn(i, 40, 77, dtype=HALF) / 9 for i in (2, 3)]
    for bias in (None, randn(4, 40).half(), randn(4, 40) * 1.001):
        packed, expected = (each.pack(weights[0], bias) for each in (kernels, REFERENCE))
        got = kernels.linear(x, packed)
        assert got.dtype is HALF
        assert_within(got, REFERENCE.linear(x, expected), linear.TOLERANCE[HALF])
        wide = kernels.linear(x, packed, out=torch.empty(9, 40))
        torch.testing.assert_close(
            wide, REFERENCE.linear(x, expected, out=torch.empty(9, 40)), rtol=1e-4, atol=1e-4
        )
    for name in ("silu", "gelu_tanh"):
        got, expected = (
            each.gated_linear(x, *(each.pack(weight) for weight in weights), name)
            for each in (kernels, REFERENCE)
        )
        assert_within(got, expected, gated_linear.TOLERANCE[HALF])


def test_weights_in_blocks_and_in_fp8_are_rounded_to_it(kernels):
    weight, x = random_weight(1, FORMATS["q4_k"], 40, 256), randn(2, 3, 256, dtype=HALF) / 16
    expected = x.float() @ dequantise(weight).half().float().T
    packed = kernels.pack_stored(weight, dtype=HALF)
    assert_within(kernels.linear(x, packed), expected.half(), linear.TOLERANCE[HALF])
    assert torch.equal(kernels.gather_rows(packed, ints(0, 39)), dequantise(weight).half()[[0, 39]])
    dense = randn(3, 40, 256) / 16
    in_fp8 = kernels.pack_fp8(dense, dtype=HALF)
    values = kernels.gather_rows(kernels.pack_fp8(dense), torch.arange(40, dtype=torch.int32))
    assert_within(
        kernels.linear(x * 16, in_fp8), ((x * 16).float() @ values.T).half(), linear.TOLERANCE[HALF]
    )


@pytest.mark.parametrize("kind", ["before", "both"])
def test_norms_equal_the_reference(kernels, kind):
    hidden, weight, residual = randn(1, 9, 577, dtype=HALF), randn(2, 577, dtype=HALF), randn(3, 9, 577)
    own, around = residual.clone(), norms_of(kind, weight, 1e-5)
    expected = REFERENCE.add_rms_norm(hidden, own, around)
    assert_within(kernels.add_rms_norm(hidden, residual, around), expected, norms.TOLERANCE[HALF])
    torch.testing.assert_close(residual, own, rtol=1e-5, atol=1e-5)
    expected = REFERENCE.rms_norm(hidden, weight, 1e-5)
    assert_within(kernels.rms_norm(hidden, weight, 1e-5), expected, norms.TOLERANCE[HALF])


def test_gates_and_gathered_rows_equal_the_reference(kernels):
    gate_up, table = randn(1, 5, 66, dtype=HALF), randn(2, 40, 64, dtype=HALF)
    for name in ("silu_and_mul", "gelu_tanh_and_mul"):
        got, expected = (getattr(each, name)(gate_up) for each in (kernels, REFERENCE))
        assert_within(got, expected, activation.TOLERANCE[HALF])
    got = kernels.gather_rows(kernels.pack(table), ints(0, 39, 40))
    assert torch.equal(got, torch.cat([table[[0, 39]], torch.zeros(1, 64).half()]))


@pytest.mark.parametrize(
    "chunks", [[(0, 0, 40), (1, 0, 9)], [(0, 39, 40), (1, 8, 9)]], ids=["prompts", "next"]
)
def test_rotations_and_attention_equal_the_reference(kernels, chunks):
    """Over a cache of float16, which the reference has written."""
    sequences = PagedSequences(REFERENCE, HEADS, [40, 9], HALF, head_norms=True)
    whole = [(0, 0, 40), (1, 0, 9)]
    sequences.forward(whole)
    batch, layer = sequences.batch(chunks), sequences.layer(30, 20.0)
    qkv = torch.cat([sequences.qkv[s][first:last] for s, first, last in chunks])
    cache = sequences.cache.clone()
    q, expected = (
        each.rope_and_store(qkv, own, batch, layer)
        for each, own in ((kernels, cache), (REFERENCE, sequences.cache))
    )
    assert_within(q, expected, rotary.TOLERANCE[HALF])
    kept = ~sequences.cache.isnan()
    assert_within(cache[kept], sequences.cache[kept], rotary.TOLERANCE[HALF])
    got, expected = (each.paged_attention(q, cache, batch, layer) for each in (kernels, REFERENCE))
    assert_within(got, expected, attention.TOLERANCE[HALF])
