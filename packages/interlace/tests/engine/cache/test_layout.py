"""The memory that a block takes, and the place of each token of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interlace.engine.cache.block_table import BlockTable
from interlace.engine.cache.kv_cache import KVCache
from interlace.engine.cache.layout import CacheLayout, padded_tables, token_slots
from tokenweave.kernels import HeadLayout, ReferenceKernels


def table_of(*blocks: int) -> BlockTable:
    table = BlockTable(16 * len(blocks))
    table.extend(list(blocks))
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [HeadLayout(4, (0, 0, 1, 1), 8), HeadLayout(0, (), 8)])
def test_a_cache_takes_the_bytes_that_its_layout_tells(heads: HeadLayout, dtype: torch.dtype) -> None:
    layout = CacheLayout(3, heads, dtype)
    assert KVCache(ReferenceKernels(), layout, 5).tensor.nbytes == layout.size_bytes(5)


def test_shorter_tables_are_padded_with_block_0() -> None:
    tables = padded_tables([table_of(3, 1), table_of(2)], np.array([17, 16], dtype=np.int32))
    assert tables.tolist() == [[3, 1], [2, 0]]


def test_blocks_beyond_the_tokens_of_a_pass_are_left_out() -> None:
    assert padded_tables([table_of(3, 1)], np.array([16], dtype=np.int32)).tolist() == [[3]]


def test_each_new_token_has_a_slot_in_its_own_sequence() -> None:
    tables = np.array([[3, 1], [2, 0]], dtype=np.int32)
    slots = token_slots(tables, np.array([2, 1], dtype=np.int32), np.array([15, 16, 4], dtype=np.int32))
    assert slots.tolist() == [3 * 16 + 15, 16, 2 * 16 + 4]
    assert slots.dtype == np.int32
