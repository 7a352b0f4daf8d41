"""BlockTable: the blocks of one sequence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenweave.kernels import BLOCK_SIZE, blocks_for


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

    def replace(self, index: int, block: int) -> None:
        """Has `block`, which holds the same, in the place of the one there."""
        self._blocks[index] = block

    def clear(self) -> list[int]:
        """Forgets its blocks and returns them; they are the caller's to free."""
        blocks: list[int] = self.blocks.tolist()
        self.num_blocks = 0
        return blocks
