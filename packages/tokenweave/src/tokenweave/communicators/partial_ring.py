"""A ring of symmetric buffers for partial sums, so that a reduction on GPUs copies nothing.

Thread safety: one thread, the compute lane's.

Invariants:
  1. Every rank takes the same buffers in the same order, because every rank runs the same plan. So a partial sum has
     one offset on all ranks.
  2. A buffer is taken again only after `NUM_BUFFERS - 1` others: a plan has two parts at most, and two later partial
     sums of the same part lie between. The normed rows of a reduction replace its partial sum, so they stay until the
     second reduction after it. By then no rank reads the buffer: a rank's kernel ends when all have read.
  3. A pass begins at the first buffer, so that passes alike use the same addresses, as captured graphs need. What an
     earlier pass has left there is overwritten by work that is queued behind it.
"""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING

from tokenweave.communicators import activation_ring
from tokenweave.communicators.activation_ring import MAX_TENSORS, BuffersTaken

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tokenweave.communicators.symmetric_memory import SymmetricBuffer

NUM_BUFFERS = 6  # two parts, three buffers each
ALIGNMENT_BYTES = 256
# Passes begin at a multiple of this, which is the first buffer, and the same `BuffersTaken.phase` for all passes.
PASS_UNIT = lcm(NUM_BUFFERS, activation_ring.NUM_BUFFERS)


def ring_bytes(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Bytes of symmetric memory for a ring of partial sums of up to (num_tokens, hidden_size)."""
    return NUM_BUFFERS * _rounded(num_tokens * hidden_size * dtype.itemsize)


class PartialRing:
    """One rank's ring, in a symmetric buffer of `ring_bytes`."""

    def __init__(self, buffer: SymmetricBuffer) -> None:
        self._local = buffer.local
        self.buffer_bytes = buffer.local.nbytes // NUM_BUFFERS
        self._tensors: dict[tuple[int, int, int, torch.dtype], Tensor] = {}  # making one costs microseconds
        self._taken = 0

    def fits(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        return num_tokens * hidden_size * dtype.itemsize <= self.buffer_bytes

    def begin_pass(self) -> None:
        """Goes on at the first buffer. Every rank does so, before each pass or before none."""
        self._taken += -self._taken % PASS_UNIT

    @property
    def taken(self) -> BuffersTaken:
        """How many buffers were taken so far; answers have none of their own."""
        return BuffersTaken(partials=self._taken)

    def take(self, num: BuffersTaken) -> None:
        """Counts buffers that a captured pass takes by their addresses."""
        self._taken += num.partials

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """(num_tokens, hidden_size), which must fit. What is in it is what was there."""
        offset = self._taken % NUM_BUFFERS * self.buffer_bytes
        self._taken += 1
        key = (offset, num_tokens, hidden_size, dtype)
        if (found := self._tensors.get(key)) is None:
            if len(self._tensors) >= MAX_TENSORS:
                self._tensors.clear()
            whole = self._local[offset : offset + num_tokens * hidden_size * dtype.itemsize]
            found = self._tensors[key] = whole.view(dtype).view(num_tokens, hidden_size)
        return found


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
