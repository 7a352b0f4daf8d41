"""BlockManager: which blocks of the paged KV cache are free.

Invariants (`check` verifies them against the owners' block tables)
1. Every block is either free or in exactly one table, once.
2. The free list holds no block twice.

Thread safety: none; it belongs to the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from interlace.errors import CacheTooSmall, EngineError
from tokenweave.kernels import BLOCK_SIZE


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_SIZE)


class BlockManager:
    """Hands out block numbers 0..num_blocks-1, the most recently freed first (its lines are warmest)."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise CacheTooSmall(f"a KV cache of {num_blocks} blocks: expected at least 1; raise kv_cache_gb")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = bytearray(b"\x01" * num_blocks)

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
