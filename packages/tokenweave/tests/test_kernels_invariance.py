"""Batch invariance: a row's bits depend on nothing but the row, on every instruction set."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.kernel_cases import AVAILABLE_ISAS, DTYPES, PagedSequences, native_kernels, randn
from tokenweave.kernels import HeadLayout, ResidualNorms

isas = st.sampled_from(AVAILABLE_ISAS)
dtypes = st.sampled_from(DTYPES)
threads = st.sampled_from([1, 2, 3])


def cuts(total: int) -> st.SearchStrategy[list[int]]:
    """Boundaries that cut range(total) into chunks."""
    inner = st.lists(st.integers(1, max(1, total - 1)), max_size=4)
    return inner.map(lambda at: sorted({0, total, *(c for c in at if c < total)}))


@settings(max_examples=30)
@given(isas, dtypes, threads, st.data())
def test_row_by_row_kernels_ignore_how_rows_are_batched(isa, dtype, num_threads, data):
    kernels, other = native_kernels(isa, num_threads), native_kernels(isa, 1)
    m = data.draw(st.integers(1, 60))
    k = data.draw(st.sampled_from([64, 77, 1024]))
    boundaries = data.draw(cuts(m))
    x, weight = randn(m, m, k, dtype=dtype), randn(k, 200, k, dtype=dtype)
    packed, scale, gate_up = kernels.pack(weight), weight[0].contiguous(), randn(7, m, 2 * k, dtype=dtype)
    for first, last in pairwise(boundaries):
        rows = slice(first, last)
        assert torch.equal(other.linear(x[rows], packed), kernels.linear(x, packed)[rows])
        assert torch.equal(other.rms_norm(x[rows], scale, 1e-5), kernels.rms_norm(x, scale, 1e-5)[rows])
        assert torch.equal(other.silu_and_mul(gate_up[rows]), kernels.silu_and_mul(gate_up)[rows])
        assert torch.equal(other.gelu_tanh_and_mul(gate_up[rows]), kernels.gelu_tanh_and_mul(gate_up)[rows])
        whole = x.float().clone()
        part = whole[rows].clone()
        normed = kernels.add_rms_norm(x, whole, ResidualNorms(scale, 1e-5))
        assert torch.equal(other.add_rms_norm(x[rows], part, ResidualNorms(scale, 1e-5)), normed[rows])
        assert torch.equal(part, whole[rows])


@settings(max_examples=30)
@given(isas, dtypes, threads, st.data())
def test_attention_ignores_chunks_neighbours_and_blocks(isa, dtype, num_threads, data):
    heads = data.draw(
        st.sampled_from([HeadLayout(9, (0, 0, 0, 1, 1, 1, 2, 2, 2), 64), HeadLayout(5, (0, 0, 0, 0, 1), 80)])
    )
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    window = data.draw(st.sampled_from([None, 1, 20, 64, 100]))
    softcap = data.draw(st.sampled_from([None, 20.0]))
    kernels = native_kernels(isa, num_threads)
    together = PagedSequences(kernels, heads, lengths, dtype)
    whole = together.forward([(s, 0, n) for s, n in enumerate(lengths)], window, softcap).split(lengths)
    chunked = PagedSequences(native_kernels(isa, 1), heads, lengths, dtype)
    chunked.tables = chunked.tables.flip(0) if len(set(lengths)) == 1 else chunked.tables
    for s, length in enumerate(lengths):
        boundaries = data.draw(cuts(length))
        parts = [chunked.forward([(s, first, last)], window, softcap) for first, last in pairwise(boundaries)]
        assert torch.equal(torch.cat(parts), whole[s])


@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 70])
def test_decode_token_by_token_is_the_whole_prefill(isa, dtype, window):
    heads = HeadLayout(3, (0, 0, 0), 64)
    whole = PagedSequences(native_kernels(isa, 2), heads, [150], dtype).forward([(0, 0, 150)], window)
    decoded = PagedSequences(native_kernels(isa, 1), heads, [150], dtype)
    tokens = [decoded.forward([(0, t, t + 1)], window) for t in range(150)]
    assert torch.equal(torch.cat(tokens), whole)
