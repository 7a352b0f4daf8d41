"""Placement: what kernels read of a batch, brought to the device that they compute on.

A batch is made, cut and priced on the host. Its integers then go over in one copy, for which the host does not wait:
from pinned memory, which torch keeps until the copy is done. Nothing is read back.

None of them is derived on the device: they are some kilobytes, and a kernel for each would take longer than their copy.
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
    there = _joined(tensors, device).to(device, non_blocking=True)
    return _views(there, tensors)


class StaticIndices:
    """The integers of passes alike, at one place of a device, where a captured pass finds them each time."""

    def __init__(self, groups: Sequence[Indices], device: torch.device) -> None:
        """`groups` are on the CPU, and are what is there first."""
        tensors = [tensor for group in groups for tensor in group.tensors]
        self._device = device
        self._flat = torch.empty(_starts(tensors)[-1], dtype=torch.int32, device=device)
        there = iter(_views(self._flat, tensors))
        self.groups = tuple(group.replaced(there) for group in groups)
        self.fill(groups)

    def fill(self, groups: Sequence[Indices]) -> None:
        """Queues one copy of `groups`, which have the same shapes, behind what reads the last ones. No wait."""
        tensors = [tensor for group in groups for tensor in group.tensors]
        self._flat.copy_(_joined(tensors, self._device), non_blocking=True)


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Where each of `tensors` begins in the one that has them all, and where that ends."""
    sizes = (-(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)
    return list(accumulate(sizes, initial=0))


def _joined(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """int32 tensors of the CPU as one; pinned where it is to be copied to a CUDA device."""
    starts = _starts(tensors)
    flat = torch.empty(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    integers = flat.numpy()
    for start, tensor in zip(starts, tensors, strict=False):
        integers[start : start + tensor.numel()] = tensor.numpy().ravel()
    return flat


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The places of `tensors` in `flat`."""
    return [
        flat[start : start + tensor.numel()].view(tensor.shape)
        for start, tensor in zip(_starts(tensors), tensors, strict=False)
    ]
