"""A ring of buffers for activations, which all ranks of a host see at the same place: a reduction copies nothing.

A segment holds, for each rank, a region of `NUM_BUFFERS` buffers for partial sums, and after the regions as many
buffers for answers, which all ranks share.

Thread safety: `new_partial` is for one thread (the compute lane), `next_answer` for one (the transfer lane).

Invariants
1. Every rank takes the same buffers in the same order, because every rank runs the same plan. So a partial sum has one
   offset on all ranks.
2. A buffer is taken again only after `NUM_BUFFERS - 1` others. A plan has two parts at most, and each part writes its
   next partial sum only after its last reduction; so when a buffer is taken again every rank has been through a later
   reduction of the same part, or of the other if that part has ended, and so is done reading it.
3. A pass begins at an even count, so one buffer may be left out between two passes. At most the last partial sum of a
   pass can still be read when the next begins, for that pass's last reduction ended the reading of all others; and
   neither of the next two buffers is that one.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from emucxl.errors import SegmentError
from tokenweave.errors import CommunicatorError

if TYPE_CHECKING:
    from emucxl.shared_memory import SharedSegment

NUM_BUFFERS = 4  # two parts, two buffers each
PAGE_BYTES = 4096
MAX_TENSORS = 256  # that are kept to be handed out again


def symmetric_bytes(size: int, buffer_bytes: int) -> int:
    """Bytes of the segment that `size` ranks need for partial sums of up to `buffer_bytes` (rounded up to pages)."""
    if size < 1 or buffer_bytes < 1:
        raise CommunicatorError(f"got size={size}, buffer_bytes={buffer_bytes}; expected at least 1 of each")
    return (size + 1) * NUM_BUFFERS * _rounded(buffer_bytes)


class BuffersTaken(NamedTuple):
    """How many of a ring's buffers passes took: for partial sums, and for answers."""

    partials: int = 0
    answers: int = 0

    @property
    def phase(self) -> tuple[int, int]:
        """Where in the ring the next buffers lie: passes alike that begin at one phase take the same."""
        return self.partials % NUM_BUFFERS, self.answers % NUM_BUFFERS

    def since(self, before: BuffersTaken) -> BuffersTaken:
        """How many were taken after `before`."""
        return BuffersTaken(self.partials - before.partials, self.answers - before.answers)


class ActivationRing:
    """One rank's view of the segment, which it takes over."""

    def __init__(self, segment: SharedSegment, rank: int, size: int) -> None:
        self.buffer_bytes = segment.size_bytes // ((size + 1) * NUM_BUFFERS) // PAGE_BYTES * PAGE_BYTES
        if self.buffer_bytes == 0:
            raise CommunicatorError(
                f"got a segment of {segment.size_bytes:,} bytes; {size} ranks need {symmetric_bytes(size, 1):,} or more"
            )
        self.region_bytes = NUM_BUFFERS * self.buffer_bytes
        self.address = segment.address
        self._segment = segment
        self._view = segment.buffer
        self._bytes = torch.frombuffer(self._view, dtype=torch.uint8)
        self._own = rank * self.region_bytes
        self._answers = size * self.region_bytes
        self._tensors: dict[tuple[int, int, int, torch.dtype], Tensor] = {}  # making one costs microseconds
        self._partials_taken = self._answers_taken = 0

    def fits(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        return num_tokens * hidden_size * dtype.itemsize <= self.buffer_bytes

    def begin_pass(self) -> None:
        """Goes on at an even count. Every rank does so, before each pass or before none."""
        self._partials_taken += self._partials_taken % 2
        self._answers_taken += self._answers_taken % 2

    @property
    def taken(self) -> BuffersTaken:
        """How many buffers were taken so far."""
        return BuffersTaken(self._partials_taken, self._answers_taken)

    def take(self, num: BuffersTaken) -> None:
        """Counts buffers that a captured pass takes by their addresses."""
        self._partials_taken += num.partials
        self._answers_taken += num.answers

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """(num_tokens, hidden_size) in this rank's region. What is in it is what was there."""
        self._partials_taken += 1
        offset = self._own + self._partials_taken % NUM_BUFFERS * self.buffer_bytes
        return self._tensor(offset, num_tokens, hidden_size, dtype)

    def next_answer(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """(num_tokens, hidden_size), the same memory on every rank."""
        self._answers_taken += 1
        offset = self._answers + self._answers_taken % NUM_BUFFERS * self.buffer_bytes
        return self._tensor(offset, num_tokens, hidden_size, dtype)

    def of_rank(self, rank: int, partial: Tensor) -> Tensor:
        """Returns the buffer of `rank` that lies where this rank has `partial`."""
        offset = self.offset_of(partial)
        if offset is None:
            raise CommunicatorError("got a tensor that is not from new_partial; expected one that is")
        return self._tensor(rank * self.region_bytes + offset, len(partial), partial.shape[1], partial.dtype)

    def offset_of(self, tensor: Tensor) -> int | None:
        """Where in this rank's region `tensor` begins; None if it is not there, or not contiguous."""
        if tensor.numel() == 0:  # it has no address
            return 0
        offset = tensor.data_ptr() - self.address - self._own
        inside = 0 <= offset <= self.region_bytes - tensor.nbytes
        return offset if inside and tensor.is_contiguous() else None

    def close(self) -> None:
        """Lets go of the segment, as soon as no tensor of it is in use any more."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._tensors.clear()
        with suppress(
            BufferError, SegmentError
        ):  # a tensor is still alive: the memory goes with the last one
            self._view.release()
            self._segment.close()

    def _tensor(self, offset: int, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        size_bytes = num_tokens * hidden_size * dtype.itemsize
        if not 0 <= size_bytes <= self.buffer_bytes:
            raise CommunicatorError(
                f"got ({num_tokens}, {hidden_size}) of {dtype}, {size_bytes:,} bytes; expected at most the "
                f"{self.buffer_bytes:,} bytes of a buffer"
            )
        key = (offset, num_tokens, hidden_size, dtype)
        if (found := self._tensors.get(key)) is None:
            if len(self._tensors) >= MAX_TENSORS:
                self._tensors.clear()
            whole = self._bytes[offset : offset + size_bytes]
            found = self._tensors[key] = whole.view(dtype).view(num_tokens, hidden_size)
        return found


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
