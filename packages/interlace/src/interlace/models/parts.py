"""Parts: the tokens of a forward pass, cut as its plan says, and what its steps hand on to each other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch
from interlace.models.placement import Indices, StaticIndices, place
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


@dataclass(frozen=True)
class PassInputs:
    """All that kernels read of a pass: tables of rotations on the device, and integers on the CPU, part by part."""

    tables: tuple[Tensor, ...]  # of each kind of layers
    groups: tuple[
        Indices, ...
    ]  # a part's rows, and then those of its rows that go on in the last layer, if few
    lengths: tuple[int, ...]  # how many groups each part has
    are_tables_kept: bool  # for other passes: none was made for this one

    @classmethod
    def of(
        cls,
        batch: ForwardBatch,
        cuts: Sequence[range],
        rotations: Sequence[tuple[Tensor, Tensor]],
        are_tables_kept: bool,
    ) -> PassInputs:
        """Those of the parts of `batch` that have the rows `cuts`.

        Each kind of layers has its rotations: a table on the device, and on the CPU each token's row, (num_tokens,).
        """
        rotation_rows = [rows for _, rows in rotations]
        parts = [_indices_of(batch, rotation_rows, rows) for rows in cuts]
        groups = tuple(indices for part in parts for indices in part)
        return cls(tuple(table for table, _ in rotations), groups, tuple(map(len, parts)), are_tables_kept)

    @property
    def key(self) -> Hashable:
        """Equal for passes that differ in the numbers of their groups alone, while one of them keeps its tables alive.

        None where a table was made for this pass.
        """
        if not self.are_tables_kept:
            return None
        shapes = tuple(tensor.shape for group in self.groups for tensor in group.tensors)
        return shapes, self.lengths, tuple(map(id, self.tables))

    def parts_on(self, device: torch.device) -> tuple[Part, ...]:
        """The parts, with their tensors on `device`."""
        kind = Part if device.type == "cpu" else PartOnDevice
        return self._parts(kind, place(self.groups, device))

    def parts_in(self, memory: StaticIndices) -> tuple[Part, ...]:
        """The parts, of the integers in `memory`, which was made for groups alike."""
        return self._parts(PartOnDevice, memory.groups)

    def _parts(self, kind: type[Part], placed: Sequence[Indices]) -> tuple[Part, ...]:
        each = iter(placed)
        return tuple(kind(self.tables, *islice(each, length)) for length in self.lengths)


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
