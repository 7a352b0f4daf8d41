"""Long sequences: keys are attended in fixed partitions, whoever attends them."""

from __future__ import annotations

from ctypes import byref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.kernel_cases import AVAILABLE_ISAS, DTYPES, PagedSequences, assert_within, native_kernels
from tokenweave.kernels import HeadLayout, Kernels, ReferenceKernels, attention

PARTITION = 512
BOUNDARIES = [511, 512, 513, 1023, 1024, 1025]
ONE_HEAD = HeadLayout(1, (0,), 16)
UNEVEN = HeadLayout(5, (0, 0, 0, 0, 1), 16)
SMOLLM2 = HeadLayout(9, (0, 0, 0, 1, 1, 1, 2, 2, 2), 64)
WINDOWS = [None, 1, 64, 500, 511, 512, 513, 700]


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    assert torch.equal(bits(got), bits(expected))


def attend(
    kernels: Kernels,
    sequences: PagedSequences,
    chunks: list[tuple[int, int, int]],
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of q as it is over a cache that has all keys already."""
    width = sequences.heads.num_heads * sequences.heads.head_dim
    q = torch.cat([sequences.qkv[s][first:last, :width] for s, first, last in chunks]).contiguous()
    layer = sequences.layer(window, softcap)
    return kernels.paged_attention(q, sequences.cache, sequences.batch(chunks), layer)


def stored(kernels: Kernels, heads: HeadLayout, lengths: list[int], dtype: torch.dtype) -> PagedSequences:
    sequences = PagedSequences(kernels, heads, lengths, dtype)
    store(sequences)
    return sequences


def store(sequences: PagedSequences) -> None:
    batch = sequences.batch([(s, 0, length) for s, length in enumerate(sequences.lengths)])
    sequences.kernels.rope_and_store(torch.cat(sequences.qkv), sequences.cache, batch, sequences.layer())


def num_tasks(
    threads: int, sequences: PagedSequences, chunks: list[tuple[int, int, int]], window: int | None = None
) -> int:
    pool = native_kernels("baseline", threads).pool
    batch, layer = sequences.batch(chunks), sequences.layer(window)
    return int(pool.library.tw_attention_tasks(pool.handle, byref(batch.native), byref(layer.native)))


@settings(max_examples=15)
@given(st.sampled_from(AVAILABLE_ISAS), st.sampled_from(DTYPES), st.data())
def test_a_row_has_the_same_bits_however_its_partitions_are_shared_out(isa, dtype, data):
    lengths = data.draw(st.lists(st.sampled_from([1, 40, 600, *BOUNDARIES]), min_size=1, max_size=3))
    window, softcap = data.draw(st.sampled_from(WINDOWS)), data.draw(st.sampled_from([None, 20.0]))
    sequences = stored(native_kernels(isa, 2), UNEVEN, lengths, dtype)
    batch = [(s, 0, length) for s, length in enumerate(lengths)]
    together = attend(native_kernels(isa, 1), sequences, batch, window, softcap)
    assert_same_bits(attend(native_kernels(isa, 3), sequences, batch, window, softcap), together)
    whole = together.split(lengths)
    for s, length in enumerate(lengths):
        near = st.sampled_from([at for at in [1, 37, *BOUNDARIES, length - 1] if 0 < at < length] or [0])
        at = sorted({0, length, *data.draw(st.lists(near, max_size=3))})
        for first, last in pairwise(at):
            threads = data.draw(st.sampled_from([1, 2, 3, 5]))
            alone = attend(native_kernels(isa, threads), sequences, [(s, first, last)], window, softcap)
            assert_same_bits(alone, whole[s][first:last])


@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 700, 1024])
def test_decoding_one_long_sequence_has_the_same_bits_on_any_number_of_threads(isa, dtype, window):
    length = 4 * PARTITION + 3
    sequences = stored(native_kernels(isa, 2), UNEVEN, [length], dtype)
    for first in (length - 1, length - 5):
        chunk = [(0, first, length)]
        alone = attend(native_kernels(isa, 1), sequences, chunk, window, 20.0)
        for threads in (2, 3, 5):
            assert num_tasks(threads, sequences, chunk, window) > num_tasks(1, sequences, chunk, window)
            assert_same_bits(attend(native_kernels(isa, threads), sequences, chunk, window, 20.0), alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 900])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_partitions_equal_the_reference(dtype, window, softcap):
    length = 3 * PARTITION + 70
    chunk = [(0, length - 2, length)]
    of_reference = stored(ReferenceKernels(), SMOLLM2, [length], dtype)
    expected = attend(of_reference.kernels, of_reference, chunk, window, softcap)
    for isa in AVAILABLE_ISAS:
        sequences = stored(native_kernels(isa, 2), SMOLLM2, [length], dtype)
        got = attend(native_kernels(isa, 5), sequences, chunk, window, softcap)
        assert_within(got, expected, attention.TOLERANCE[dtype])


def test_few_long_sequences_are_cut_at_partitions_and_others_are_not():
    sequences = stored(native_kernels("baseline", 2), SMOLLM2, [4 * PARTITION, 40], torch.float32)
    decoded, short = (0, 4 * PARTITION - 1, 4 * PARTITION), (1, 39, 40)
    assert num_tasks(1, sequences, [decoded]) == 3  # KV heads; nobody to share them with
    assert num_tasks(2, sequences, [decoded]) == 3 * 4
    assert num_tasks(2, sequences, [decoded], window=600) == 3 * 2
    assert num_tasks(2, sequences, [decoded, *[short] * 9]) == 3 * 4 + 9 * 3
    assert num_tasks(2, sequences, [decoded] * 8) == 8 * 3  # enough for everyone as they are
    assert num_tasks(2, sequences, [(0, 0, PARTITION)]) == 3 * PARTITION // 16
    assert num_tasks(2, sequences, [(0, PARTITION - 1, PARTITION)]) == 3
    assert num_tasks(2, sequences, [(0, PARTITION, PARTITION + 1)]) == 3 * 2


@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sign_of_a_zero_does_not_depend_on_tiles_that_a_row_does_not_see(isa, dtype):
    """Token 127 sees two tiles of 64 keys; beside token 128 a third is visited. Where tiles flush denormals its output
    is -0 after two and +0 after three: key 0 leaves it the least normal, which key 69 shrinks and adds -0 to."""
    sequences = PagedSequences(native_kernels(isa, 1), ONE_HEAD, [130], dtype)
    q, k, v = sequences.qkv[0].chunk(3, dim=1)
    q.fill_(1.0)
    k.fill_(0.0)
    k[0], k[69] = 1.0, 2.0
    v.fill_(-(2.0**-126))
    v[69] = -0.0
    sequences.cos_sin.fill_(0.0)[:, :8] = 1.0
    store(sequences)
    alone = attend(sequences.kernels, sequences, [(0, 127, 128)])
    beside = attend(sequences.kernels, sequences, [(0, 126, 130)])[1:2]
    assert_same_bits(alone, beside)
