"""Padding: batches that decode, filled up to one of a few sizes, so that few passes have to be captured.

A row that only fills up is a sequence of its own with one key, which is stored nowhere: its slot is -1. Nobody reads
what is computed for it, and no other row sees it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch

FIRST_WIDTH = 64  # blocks in the narrowest tables: 1,024 tokens of each sequence
WIDTH_STEP = 4  # tables are so many times wider than the next narrower ones
NO_SLOT = -1


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """Returns how many rows batches are filled up to: powers of two, from 16 on also halfway, and `max_rows`.

    So from 16 rows on at most half as many are added as are there.
    """
    powers = (1 << n for n in range(max_rows.bit_length()))
    steps = (rows for power in powers for rows in ((power, power * 3 // 2) if power >= 16 else (power,)))
    return (*(rows for rows in steps if rows < max_rows), max_rows)


def row_bucket(num_rows: int, max_rows: int) -> int:
    """Returns the fewest rows that a batch of `num_rows` is filled up to."""
    return next(rows for rows in row_buckets(max_rows) if rows >= num_rows)


def width_bucket(num_blocks: int, max_blocks: int) -> int:
    """Returns how wide tables of `num_blocks` are made: what the host fills and attention looks over grows with it."""
    width = FIRST_WIDTH
    while width < num_blocks:
        width *= WIDTH_STEP
    return min(width, max_blocks)


def is_decoding(batch: ForwardBatch) -> bool:
    """Whether each row of `batch` is a sequence's only one, and has its logits wanted."""
    return batch.num_tokens == batch.num_seqs == len(batch.logit_rows) > 0


def padded(batch: ForwardBatch, num_rows: int, table_width: int) -> ForwardBatch:
    """A batch that decodes, with rows added behind its own up to `num_rows`, and block tables of `table_width`.

    Where it is cut in two, it is cut in the middle of all rows: so sizes that are padded alike are cut alike. Added
    rows rotate as the first one does, so that they need no other table.
    """
    added = num_rows - batch.num_tokens
    count = torch.arange(num_rows + 1, dtype=torch.int32)
    tables = torch.zeros(num_rows, table_width, dtype=torch.int32)
    tables[: batch.num_seqs, : batch.block_tables.shape[1]] = batch.block_tables
    return replace(
        batch,
        token_ids=_filled(batch.token_ids, added, 0),
        positions=_filled(batch.positions, added, int(batch.positions[0])),
        slots=_filled(batch.slots, added, NO_SLOT),
        query_start=count,
        seq_lens=_filled(batch.seq_lens, added, 1),
        block_tables=tables,
        logit_rows=count[:-1],
        prompt_lens=_filled(batch.prompt_lens, added, int(batch.prompt_lens[0])),
        split=None if batch.split is None else num_rows // 2,
    )


def nothing_but_padding(num_rows: int, table_width: int) -> ForwardBatch:
    """A batch that decodes nothing: a pass over it changes no key. It is like any of so many rows, of that width."""
    one = torch.ones(1, dtype=torch.int32)
    start = torch.tensor([0, 1], dtype=torch.int32)
    row = ForwardBatch(one * 0, one * 0, one * NO_SLOT, start, one, (one * 0)[None], one * 0, one)
    return padded(row, num_rows, table_width)


def _filled(values: Tensor, added: int, value: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, added), value=value)
