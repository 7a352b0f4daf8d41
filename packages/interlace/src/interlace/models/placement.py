"""Placement: what kernels read of a batch, brought to the device that they compute on.

A batch is made, cut and priced on the host. Its integers then go over in one copy, for which the host does not wait:
from pinned memory, which torch keeps until the copy is done. Nothing is read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch

_ALIGNMENT = 4  # integers: Triton compiles a kernel again for a pointer that is no multiple of 16 bytes


class Indices(NamedTuple):
    """The integers that kernels read of some rows of a pass, all on one device. `ForwardBatch` says what each is."""

    token_ids: Tensor
    slots: Tensor
    query_start: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    logit_rows: Tensor
    rotation_rows: tuple[Tensor, ...]  # (num_tokens,) each: rows of the rotations of each kind of layers

    @classmethod
    def of(cls, batch: ForwardBatch, rotation_rows: Iterable[Tensor]) -> Indices:
        """Those of `batch`, where it is."""
        return cls(
            batch.token_ids,
            batch.slots,
            batch.query_start,
            batch.seq_lens,
            batch.block_tables,
            batch.logit_rows,
            tuple(rotation_rows),
        )

    @property
    def tensors(self) -> list[Tensor]:
        return [*self[:6], *self.rotation_rows]

    def replaced(self, tensors: Iterator[Tensor]) -> Indices:
        """Others in their place: the next ones of `tensors`, in the order of the property."""
        ids, slots, starts, lens, tables, logit_rows, *rows = islice(tensors, len(self.tensors))
        return Indices(ids, slots, starts, lens, tables, logit_rows, tuple(rows))


def place(groups: Sequence[Indices], device: torch.device) -> Sequence[Indices]:
    """Brings `groups` from the CPU to `device` in one copy; where that is the CPU, they stay what they are."""
    if device.type == "cpu":
        return groups
    there = iter(in_one_copy([tensor for group in groups for tensor in group.tensors], device))
    return [group.replaced(there) for group in groups]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU, on `device`. The host does not wait."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def in_one_copy(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """int32 tensors of the CPU on `device`, as views of one that is copied there."""
    sizes = [-(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    starts = list(accumulate(sizes, initial=0))
    flat = torch.empty(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    integers = flat.numpy()
    for start, tensor in zip(starts, tensors, strict=False):
        integers[start : start + tensor.numel()] = tensor.numpy().ravel()
    there = flat.to(device, non_blocking=True)  # pinned above, where that matters
    return [
        there[start : start + tensor.numel()].view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=False)
    ]
