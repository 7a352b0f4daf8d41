"""BlockManager and BlockTable: which blocks of the KV cache are free, and which a sequence has.

Invariants (`check` verifies them against the owners' block tables)
1. Every block is either free or in exactly one table, once.
2. The free list holds no block twice.

Thread safety: none; it belongs to the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from interlace.errors import CacheTooSmall, EngineError
from tokenweave.kernels import BLOCK_SIZE, blocks_for


class BlockManager:
    """Hands out block numbers 0..num_blocks-1, the most recently freed first (its lines are warmest)."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise CacheTooSmall(f"a KV cache of {num_blocks} blocks: expected at least 1; raise kv_cache_gb")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = bytearray(b"\x01" * num_blocks)

    @property
    def num_tokens(self) -> int:
        """Tokens that all blocks together hold."""
        return self.num_blocks * BLOCK_SIZE

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks, now the caller's. Raises CacheTooSmall, taking none, when fewer are free."""
        if count > len(self._free):
            raise CacheTooSmall(f"{count} KV blocks wanted, {len(self._free)} free of {self.num_blocks}")
        if count <= 0:
            return []
        blocks = self._free[-count:][::-1]
        del self._free[-count:]
        for block in blocks:
            self._is_free[block] = 0
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Takes blocks back. Raises EngineError on a block that is free already."""
        for block in blocks:
            if self._is_free[block]:
                raise EngineError(f"KV block {block} was freed twice; this is a bug in the scheduler")
            self._is_free[block] = 1
            self._free.append(block)

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Raises EngineError unless free blocks and `tables` together hold every block exactly once."""
        held = [int(block) for table in tables for block in table]
        if sorted(held + self._free) != list(range(self.num_blocks)):
            raise EngineError(
                f"KV blocks are leaked or owned twice: {len(held)} held, {len(self._free)} free, "
                f"{self.num_blocks} exist; this is a bug in the scheduler"
            )


class BlockTable:
    """The blocks of one sequence, in the order of its tokens, with room for those of `max_tokens` tokens."""

    def __init__(self, max_tokens: int) -> None:
        self._blocks = np.zeros(blocks_for(max_tokens), dtype=np.int32)
        self.num_blocks = 0

    @property
    def blocks(self) -> npt.NDArray[np.int32]:  # (num_blocks,)
        return self._blocks[: self.num_blocks]

    def slot_of(self, position: int) -> int:
        """The slot of the token at `position`, which has a block."""
        block: int = self._blocks.item(position // BLOCK_SIZE)
        return block * BLOCK_SIZE + position % BLOCK_SIZE

    def num_missing(self, num_tokens: int) -> int:
        """Returns how many more blocks `num_tokens` tokens need; 0 or less when they fit."""
        return blocks_for(num_tokens) - self.num_blocks

    def extend(self, blocks: list[int]) -> None:
        """Appends blocks, which the next tokens fill."""
        self._blocks[self.num_blocks : self.num_blocks + len(blocks)] = blocks
        self.num_blocks += len(blocks)

    def clear(self) -> list[int]:
        """Forgets its blocks and returns them; they are the caller's to free."""
        blocks: list[int] = self.blocks.tolist()
        self.num_blocks = 0
        return blocks
