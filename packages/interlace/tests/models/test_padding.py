"""Batches that decode are filled up to few sizes, by rows that are nobody's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interlace.models.batch import ForwardBatch
from interlace.models.padding import (
    is_decoding,
    nothing_but_padding,
    padded,
    row_bucket,
    row_buckets,
    width_bucket,
)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def decoding(split: int | None = None) -> ForwardBatch:
    """Three sequences, of 5, 40 and 17 tokens."""
    return ForwardBatch(
        token_ids=ints(7, 8, 9),
        positions=ints(4, 39, 16),
        slots=ints(52, 103, 16),
        query_start=ints(0, 1, 2, 3),
        seq_lens=ints(5, 40, 17),
        block_tables=torch.tensor([[3, 0, 0], [4, 5, 6], [2, 1, 0]], dtype=torch.int32),
        logit_rows=ints(0, 1, 2),
        prompt_lens=ints(5, 12, 3),
        split=split,
    )


@pytest.mark.parametrize(
    ("most", "buckets"),
    [(1, [1]), (5, [1, 2, 4, 5]), (64, [1, 2, 4, 8, 16, 24, 32, 48, 64]), (40, [1, 2, 4, 8, 16, 24, 32, 40])],
)
def test_rows_come_in_few_numbers_up_to_the_most(most: int, buckets: list[int]) -> None:
    assert list(row_buckets(most)) == buckets
    for rows in range(1, most + 1):
        bucket = row_bucket(rows, most)
        assert bucket == min(each for each in buckets if each >= rows)
        assert bucket <= (1.5 * rows if rows > 16 else 2 * rows)


def test_tables_come_in_few_widths_up_to_the_longest() -> None:
    widths = {n: width_bucket(n, 3000) for n in (0, 1, 64, 65, 256, 257, 1024, 1025, 3000)}
    assert list(widths.values()) == [64, 64, 64, 256, 256, 1024, 1024, 3000, 3000]
    assert width_bucket(1, 10) == 10


def test_own_rows_stay_and_added_ones_store_nothing() -> None:
    batch = decoding()
    filled = padded(batch, 8, 5)
    for name in ("token_ids", "positions", "slots", "seq_lens", "prompt_lens", "logit_rows"):
        got, own = getattr(filled, name), getattr(batch, name)
        assert torch.equal(got[:3], own)
        assert (got.dtype, got.shape) == (torch.int32, (8,))
    assert torch.equal(filled.block_tables[:3, :3], batch.block_tables)
    assert filled.block_tables.shape == (8, 5)
    assert not filled.block_tables[:, 3:].any()
    assert not filled.block_tables[3:].any()
    assert filled.slots[3:].tolist() == [-1] * 5
    assert filled.seq_lens[3:].tolist() == [1] * 5
    assert filled.query_start.tolist() == list(range(9))
    assert is_decoding(filled)


def test_added_rows_are_of_a_text_as_long_as_the_first() -> None:
    filled = padded(decoding(), 4, 3)
    assert filled.text_lengths().tolist() == [5, 40, 17, 5]


def test_batches_that_are_padded_alike_are_cut_alike() -> None:
    assert padded(decoding(), 8, 3).split is None
    assert {padded(decoding(split), 8, 3).split for split in (1, 2)} == {4}
    assert [part.num_tokens for part in map(padded(decoding(1), 8, 3).part, (range(4), range(4, 8)))] == [
        4,
        4,
    ]


def test_batches_in_which_a_sequence_has_more_rows_or_fewer_logits_do_not_decode() -> None:
    assert is_decoding(decoding())
    assert not is_decoding(ForwardBatch.prefill(3, 100))
    assert not is_decoding(replace(decoding(), logit_rows=ints(0, 2)))


def test_nothing_but_padding_is_like_any_batch_of_that_size() -> None:
    nothing, filled = nothing_but_padding(8, 5), padded(decoding(), 8, 5)
    assert nothing.slots.tolist() == [-1] * 8
    for name in ("token_ids", "positions", "query_start", "block_tables", "logit_rows"):
        assert getattr(nothing, name).shape == getattr(filled, name).shape
    assert torch.equal(nothing.query_start, filled.query_start)
