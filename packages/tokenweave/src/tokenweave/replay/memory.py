"""PassMemory: where captured passes keep the tensors that their steps hand on to each other.

A captured pass writes to the same addresses each time, so they may not be given to anybody else. Within a pass, memory
is taken again once a tensor is gone; all captured passes share it, since no two of them run at once. So it takes the
memory of the largest pass, not of their sum. The parts of a woven pass run at the same time, but each part's steps one
after the other: so memory goes from tensor to tensor within a part only.

Thread safety: none.

Invariants
1. A block is in use from `take` until the last tensor in it is gone, or until the next `begin`.
2. Free blocks do not touch one another, and none is in use.
3. A slab is of one part, for good.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from tokenweave.kernels.memory import lazy_zeros

LINE_BYTES = 64
SLAB_BYTES = 2 << 20


class _Block(NamedTuple):
    """Bytes of a slab: [start, stop)."""

    slab: int
    start: int
    stop: int


class PassMemory:
    """The memory of one rank's captured passes."""

    def __init__(self) -> None:
        self._slabs: list[memoryview] = []
        self._parts: list[int] = []  # of the slabs
        self._free: list[_Block] = []
        self._pass = self._part = 0

    @property
    def size_bytes(self) -> int:
        return sum(len(slab) for slab in self._slabs)

    @property
    def free_bytes(self) -> int:
        """Bytes that the pass being captured does not use."""
        return sum(block.stop - block.start for block in self._free)

    def begin(self) -> None:
        """All memory is free again: a new pass is captured."""
        self._pass += 1
        self._part = 0
        self._free = [_Block(at, 0, len(slab)) for at, slab in enumerate(self._slabs)]

    def go_on_with(self, part: int) -> None:
        """The tensors to come are of this part of the tokens."""
        self._part = part

    def like(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of the shape and dtype of `tensor`; what is in it is what was there."""
        if not tensor.numel():
            return tensor
        view = self._take(tensor.nbytes)
        return torch.frombuffer(view, dtype=tensor.dtype).view(tensor.shape)

    def _take(self, size_bytes: int) -> memoryview:
        reserved = -(-size_bytes // LINE_BYTES) * LINE_BYTES
        block = self._reserve(reserved)
        view = self._slabs[block.slab][block.start : block.start + size_bytes]
        # A tensor's storage holds the view, so that the view goes with the last tensor in it.
        weakref.finalize(view, self._give_back, self._pass, block).atexit = False
        return view

    def _reserve(self, size_bytes: int) -> _Block:
        for at, block in enumerate(self._free):
            if self._parts[block.slab] == self._part and block.stop - block.start >= size_bytes:
                taken = block._replace(stop=block.start + size_bytes)
                rest = block._replace(start=taken.stop)
                self._free[at : at + 1] = [rest] if rest.stop > rest.start else []
                return taken
        slab = lazy_zeros([max(size_bytes, SLAB_BYTES)], torch.uint8)
        self._slabs.append(slab.numpy().data)
        self._parts.append(self._part)
        self._free.append(_Block(len(self._slabs) - 1, 0, slab.numel()))
        return self._reserve(size_bytes)

    def _give_back(self, of_pass: int, block: _Block) -> None:
        if of_pass != self._pass:
            return
        merged: list[_Block] = []
        for each in sorted([*self._free, block]):
            last = merged[-1] if merged else None
            if last is not None and last.slab == each.slab and last.stop == each.start:
                merged[-1] = last._replace(stop=each.stop)
            else:
                merged.append(each)
        self._free = merged
