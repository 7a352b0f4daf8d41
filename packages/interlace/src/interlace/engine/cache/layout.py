"""Layout: how tokens lie in blocks, and how the blocks of one rank lie in memory.

Blocks are numbered alike on all ranks, and a token has the same slot on each. A rank holds its own KV heads of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from interlace.engine.cache.block_table import BlockTable
from tokenweave.kernels import HeadLayout, blocks_for, slots_of

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class CacheLayout:
    """The KV cache of one rank in memory: layer by layer, and the blocks of a layer one after another."""

    num_layers: int
    heads: HeadLayout
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers; 0 on a rank without heads."""
        return self.num_layers * prod(self.heads.block_shape) * self.dtype.itemsize

    def size_bytes(self, num_blocks: int) -> int:
        """Bytes of a cache of `num_blocks`."""
        return num_blocks * self.block_bytes


def padded_tables(tables: Sequence[BlockTable], seq_lens: Int32Array) -> Int32Array:
    """Returns the blocks of each sequence's first `seq_lens` tokens, (num_seqs, max_blocks), padded with block 0."""
    padded = np.zeros((len(tables), blocks_for(int(seq_lens.max(initial=0)))), dtype=np.int32)
    for row, table, seq_len in zip(padded, tables, seq_lens.tolist(), strict=True):
        count = blocks_for(seq_len)
        row[:count] = table.blocks[:count]
    return padded


def token_slots(tables: Int32Array, num_new: Int32Array, positions: Int32Array) -> Int32Array:
    """Returns the slot of each new token, (num_tokens,): `num_new[s]` of sequence `s`, at `positions`."""
    return slots_of(tables, np.repeat(np.arange(len(num_new), dtype=np.int32), num_new), positions)
