"""Parts: the tokens of a forward pass, cut as its plan says, and what its steps hand on to each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch
from interlace.models.placement import Indices, place
from tokenweave.kernels import AttentionBatch


class Part:
    """One part of the tokens of a forward pass, and the tensors that its steps hand on to each other.

    All of them are on the kernels' device. In the last layer, once its keys are stored, a part goes on with the rows
    whose logits are wanted, if those are few (`ForwardBatch.ending`): `wanted` are these rows, and `hidden` and
    `residual` have only them from there on.
    """

    def __init__(self, rotations: Sequence[Tensor], indices: Indices, ending: Indices | None = None) -> None:
        """`rotations`: of each kind of layers; `ending`: the rows that go on in the last layer, None: all."""
        self.token_ids, self.logit_rows = indices.token_ids, indices.logit_rows
        self.wanted = None if ending is None else indices.logit_rows
        self.attention = _attention_batches(rotations, indices)
        self.wanted_attention = self.attention if ending is None else _attention_batches(rotations, ending)
        self.hidden: Tensor  # (rows, hidden): a partial sum before REDUCE_NORM, normed after it
        self.residual: Tensor  # float32, the communicator's between its calls: see its `new_residual`
        self.logits: Tensor  # (num_logits, local vocab) float32

    def read(self, other: Part) -> None:
        """Has the native calls on this part read the tokens of `other`, which is alike and lives while they run."""
        self.token_ids.copy_(other.token_ids)
        for own, others in zip(self.attention, other.attention, strict=True):
            own.native.assign(others.native)

    @property
    def is_done(self) -> bool:
        """Nothing of this part is wanted behind the last layer's keys."""
        return self.wanted is not None and not len(self.wanted)


class PartOnDevice(Part):
    """A part whose lanes may be streams of a device: what one lane handed to another is kept until it has been read.

    The memory of a tensor that is dropped goes to the next tensor of its own stream, whoever still reads it on another
    one. `hidden` goes to and fro between two lanes. So a step's result is kept while the next step replaces it, and
    dropped by the step after that: it is on the first lane again, and waits for the one that read it.
    """

    def __init__(self, rotations: Sequence[Tensor], indices: Indices, ending: Indices | None = None) -> None:
        super().__init__(rotations, indices, ending)
        self._handed: tuple[Tensor, ...] = ()  # the step's before, and the last one's
        self._residuals: list[
            Tensor
        ] = []  # of all rows, and of the wanted ones: kept until the pass is dropped

    @property
    def hidden(self) -> Tensor:
        return self._handed[-1]

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self._handed = (*self._handed[-1:], hidden)

    @property
    def residual(self) -> Tensor:
        return self._residuals[-1]

    @residual.setter
    def residual(self, residual: Tensor) -> None:
        self._residuals.append(residual)


def parts_on(
    device: torch.device,
    batch: ForwardBatch,
    cuts: Sequence[range],
    rotations: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Part, ...]:
    """The parts of `batch` that have the rows `cuts`, with their tensors on `device`.

    Each kind of layers has its rotations: a table on the device, and each token's row of it, (num_tokens,) on the CPU.
    """
    tables, rotation_rows = [table for table, _ in rotations], [rows for _, rows in rotations]
    parts = [_indices_of(batch, rotation_rows, rows) for rows in cuts]
    placed = iter(place([indices for part in parts for indices in part], device))
    kind = Part if device.type == "cpu" else PartOnDevice
    return tuple(kind(tables, *islice(placed, len(part))) for part in parts)


def _attention_batches(rotations: Sequence[Tensor], indices: Indices) -> tuple[AttentionBatch, ...]:
    """A batch for each kind of layers, which rotate differently."""
    slots, tables, starts, lens = indices.slots, indices.block_tables, indices.query_start, indices.seq_lens
    return tuple(
        AttentionBatch(table, rows, slots, tables, starts, lens)
        for table, rows in zip(rotations, indices.rotation_rows, strict=True)
    )


def _indices_of(batch: ForwardBatch, rotation_rows: Sequence[Tensor], rows: range) -> list[Indices]:
    """Those of a part of `batch`, then those of its rows that go on in the last layer, where these are few."""
    part = batch.part(rows)
    own = rotation_rows if part is batch else [each[rows.start : rows.stop] for each in rotation_rows]
    all_rows = Indices.of(part, own)
    if part.ending is part:
        return [all_rows]
    return [all_rows, Indices.of(part.ending, (each[part.logit_rows] for each in own))]
