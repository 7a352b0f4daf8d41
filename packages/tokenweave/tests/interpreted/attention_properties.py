"""Attention of CudaKernels under Triton's interpreter. Run by test_fake_cuda.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.kernel_cases import DTYPES, PagedSequences, assert_within, ints
from tokenweave.kernels import AttentionBatch, HeadLayout, ReferenceKernels
from tokenweave.kernels.attention import TOLERANCE
from tokenweave.kernels.checks import CPU
from tokenweave.kernels.cuda.backend.attention import PARTITION_KEYS, paged_attention, sharing_programs

REFERENCE = ReferenceKernels()
FEW_SMS, MANY_SMS = 1, 1000  # each tile's partitions by one program, or by as many as there are
LAYOUTS = [
    HeadLayout(3, (0, 0, 1), 16),
    HeadLayout(5, (0, 0, 0, 0, 1), 24),
    HeadLayout(7, (0,) * 7, 64),
    HeadLayout(3, (0, 0, 2), 16),  # a KV head that no query head reads
]
LENGTHS = [1, 15, 16, 17, 63, 65, 130, PARTITION_KEYS - 1, PARTITION_KEYS, PARTITION_KEYS + 1, 600]
WINDOWS = [None, 1, 40, PARTITION_KEYS, 300]


def stored(heads, lengths, dtype):
    """Sequences whose keys are all in the cache, put there by the reference: it lays a block out alike."""
    sequences = PagedSequences(REFERENCE, heads, lengths, dtype)
    batch = sequences.batch([(s, 0, n) for s, n in enumerate(lengths)])
    REFERENCE.rope_and_store(torch.cat(sequences.qkv), sequences.cache, batch, sequences.layer())
    return sequences


def queries(sequences, chunks):
    width = sequences.heads.num_heads * sequences.heads.head_dim
    return torch.cat([sequences.qkv[s][first:last, :width] for s, first, last in chunks]).contiguous()


def attend(sequences, chunks, window=None, softcap=None, num_sms=FEW_SMS):
    layer, batch = sequences.layer(window, softcap), sequences.batch(chunks)
    return paged_attention(queries(sequences, chunks), sequences.cache, batch, layer, CPU, num_sms)


def reference(sequences, chunks, window=None, softcap=None):
    batch, layer = sequences.batch(chunks), sequences.layer(window, softcap)
    return REFERENCE.paged_attention(queries(sequences, chunks), sequences.cache, batch, layer)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(DTYPES),
    st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3),
    st.sampled_from(WINDOWS),
    st.sampled_from([None, 20.0]),
    st.data(),
)
def test_any_batch_equals_the_reference_and_has_the_same_bits_in_any_pieces(
    heads, dtype, lengths, window, softcap, data
):
    firsts = [data.draw(st.integers(max(0, n - 25), n - 1)) for n in lengths]
    chunks = [(s, first, n) for s, (first, n) in enumerate(zip(firsts, lengths, strict=True))]
    split = data.draw(st.integers(0, sum(last - first for _, first, last in chunks)))
    num_sms = data.draw(st.sampled_from([FEW_SMS, MANY_SMS]))
    assert_the_same_in_any_pieces(heads, dtype, chunks, window, softcap, split, num_sms)


@pytest.mark.parametrize(
    ("heads", "dtype", "chunks", "window", "softcap", "split", "num_sms"),
    [
        (LAYOUTS[1], torch.float32, [(0, 13, 16), (1, 252, PARTITION_KEYS + 1)], 40, None, 5, MANY_SMS),
        (LAYOUTS[3], torch.bfloat16, [(0, 597, 600), (1, 0, 1)], None, 20.0, 2, FEW_SMS),
    ],
)
def test_a_batch_equals_the_reference_and_has_the_same_bits_in_any_pieces(
    heads, dtype, chunks, window, softcap, split, num_sms
):
    """A chunk that crosses a partition's end, and one of several partitions; a chunk cut in two by the split."""
    assert_the_same_in_any_pieces(heads, dtype, chunks, window, softcap, split, num_sms)


def assert_the_same_in_any_pieces(heads, dtype, chunks, window, softcap, split, num_sms):
    """Chunks of sequences, as a scheduler makes them; cut in two, as weaving does; by one program for each tile or by
    many; each sequence alone."""
    sequences = stored(heads, [last for _, _, last in chunks], dtype)
    whole = attend(sequences, chunks, window, softcap)
    assert_within(whole, reference(sequences, chunks, window, softcap), TOLERANCE[dtype])
    assert torch.equal(attend(sequences, chunks, window, softcap, MANY_SMS), whole)
    for rows, part in zip((slice(0, split), slice(split, None)), halves(chunks, split), strict=True):
        if part:
            assert torch.equal(attend(sequences, part, window, softcap, num_sms), whole[rows])
    ends = [0, *torch.tensor([last - first for _, first, last in chunks]).cumsum(0).tolist()]
    for chunk, (first, last) in zip(chunks, pairwise(ends), strict=True):
        assert torch.equal(attend(sequences, [chunk], window, softcap, num_sms), whole[first:last])


def halves(chunks, split):
    """The chunks of the tokens before `split`, and those of the tokens from it on."""
    before, after, seen = [], [], 0
    for s, first, last in chunks:
        middle = min(max(first + split - seen, first), last)
        before += [(s, first, middle)] if middle > first else []
        after += [(s, middle, last)] if last > middle else []
        seen += last - first
    return before, after


def test_a_group_may_have_more_heads_than_a_tile_has_rows():
    sequences, chunks = stored(HeadLayout(70, (0,) * 70, 16), [300], torch.bfloat16), [(0, 297, 300)]
    whole = attend(sequences, chunks)
    assert_within(whole, reference(sequences, chunks), TOLERANCE[torch.bfloat16])
    assert torch.equal(attend(sequences, [(0, 299, 300)], num_sms=MANY_SMS), whole[2:])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 70])
def test_decoding_token_by_token_is_the_whole_prefill(dtype, window):
    heads, length = HeadLayout(3, (0, 0, 1), 64), 2 * PARTITION_KEYS + 20
    sequences = stored(heads, [length], dtype)
    whole = attend(sequences, [(0, 0, length)], window)
    for token in [*range(0, length, 37), PARTITION_KEYS - 1, PARTITION_KEYS, length - 1]:
        alone = attend(sequences, [(0, token, token + 1)], window, num_sms=MANY_SMS)
        assert torch.equal(alone, whole[token : token + 1])


def test_partitions_are_shared_where_tiles_are_few_and_what_is_left_in_memory_is_bounded():
    heads = HeadLayout(32, tuple(h // 4 for h in range(32)), 128)

    def programs(num_tokens, keys, num_tiles):
        return sharing_programs(heads, num_tokens, num_tiles, keys // PARTITION_KEYS, 132)

    assert programs(1, 8192, 1) == 32  # 8 KV heads: all partitions at once
    assert programs(1, 65536, 1) == 33
    assert programs(8, 8192, 8) == 4
    assert programs(64, 8192, 64) == 1
    assert programs(2048, 131072, 32) == 1
    assert programs(512, 131072, 4) == 1  # 4 GB of parts otherwise
    assert programs(1, PARTITION_KEYS, 1) == 1


def test_sequences_without_tokens_and_tokens_without_slots_fill_a_batch_up():
    """As a captured graph of more sequences needs: whoever is padded has its own bits."""
    sequences = stored(LAYOUTS[1], [300, 70], torch.float32)
    chunks = [(0, 299, 300), (1, 69, 70)]
    batch, layer = sequences.batch(chunks), sequences.layer()
    padded = AttentionBatch(
        batch.rotations,
        torch.cat([batch.rotation_rows, ints(0, 0)]),
        torch.cat([batch.slots, ints(-1, -1)]),
        torch.cat([batch.block_tables, torch.full((2, batch.block_tables.shape[1]), -1, dtype=torch.int32)]),
        ints(0, 1, 2, 2, 2),
        torch.cat([batch.seq_lens, ints(0, 0)]),
    )
    q = queries(sequences, chunks)
    wide = torch.cat([q, q])
    for num_sms in (FEW_SMS, MANY_SMS):
        got = paged_attention(wide, sequences.cache, padded, layer, CPU, num_sms)
        assert torch.equal(got[:2], attend(sequences, chunks))


@pytest.mark.parametrize("num_sms", [FEW_SMS, MANY_SMS])
def test_keys_in_blocks_that_the_cache_does_not_have_count_as_zeros(num_sms):
    heads = LAYOUTS[0]
    sequences = stored(heads, [600], torch.float32)
    batch, layer = sequences.batch([(0, 595, 600)]), sequences.layer()
    q, tables = queries(sequences, [(0, 595, 600)]), batch.block_tables.clone()
    tables[0, [0, 20, 37]] = ints(-1, len(sequences.cache), 2**31 - 1)
    zeroed = sequences.cache.clone()
    zeroed[batch.block_tables[0, [0, 20, 37]].long()] = 0.0
    spoiled = replace(batch, block_tables=tables)
    got = paged_attention(q, sequences.cache, spoiled, layer, CPU, num_sms)
    assert torch.equal(got, paged_attention(q, zeroed, batch, layer, CPU, num_sms))


def test_a_sequence_has_no_more_keys_than_its_table_and_a_token_before_all_keys_sees_none():
    sequences = stored(LAYOUTS[0], [40], torch.float32)
    batch, layer = sequences.batch([(0, 38, 40)]), sequences.layer()
    q = queries(sequences, [(0, 38, 40)])

    def of_length(length):
        return paged_attention(q, sequences.cache, replace(batch, seq_lens=ints(length)), layer, CPU, FEW_SMS)

    sequences.cache.nan_to_num_(
        0.0
    )  # 40 tokens leave a part of their last block as it was, which is not finite
    assert torch.equal(of_length(10**6)[1], of_length(48)[1])
    assert (of_length(1)[0] == 0).all()


@pytest.mark.parametrize("num_sms", [FEW_SMS, MANY_SMS])
def test_no_output_is_a_negative_zero(num_sms):
    """The sign of a zero would say which keys its tile met beside those that a row sees."""
    sequences = stored(LAYOUTS[0], [300], torch.float32)
    sequences.cache[:, 1] = -0.0
    got = attend(sequences, [(0, 294, 300)], num_sms=num_sms)
    assert (got == 0).all()
    assert not torch.signbit(got).any()
