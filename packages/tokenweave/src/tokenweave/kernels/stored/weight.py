"""StoredWeight: a matrix, or some rows and columns of one, as the blocks of a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels.stored.formats import QuantFormat


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight (n, k) in a file's own bytes.

    Column `c` of the weight is value `first_column + c` of a row of blocks, so a rank's share of the columns may begin
    and end inside a block, at any value. A row has the blocks that hold its values, no more. Rows may lie apart, as
    in a part of a file's tensor; bytes of a row follow each other.

    Raises KernelError where sizes contradict each other.
    """

    format: QuantFormat
    n: int
    k: int
    blocks: Tensor  # (n, bytes of a row) uint8
    first_column: int = 0

    def __post_init__(self) -> None:
        values = self.format.block_values
        if self.n < 0 or self.k < 1:
            raise KernelError(f"a stored weight is ({self.n}, {self.k}), expected n >= 0 and k >= 1")
        if not 0 <= self.first_column < values:
            raise KernelError(
                f"first_column is {self.first_column}, expected 0..{values - 1}, a value of the first block of "
                f"{self.format.name}; leave out the blocks before it"
            )
        expected = (self.n, self.format.row_bytes(self.first_column + self.k))
        blocks = self.blocks
        if blocks.dtype is not torch.uint8 or tuple(blocks.shape) != expected or not blocks.is_cpu:
            raise KernelError(
                f"blocks are {blocks.dtype} {tuple(blocks.shape)} on {blocks.device}, expected torch.uint8 {expected} "
                f"on the CPU: {self.k} values of {self.format.name} from value {self.first_column} on, in blocks of "
                f"{values} values and {self.format.block_bytes} bytes"
            )
        if blocks.numel() and blocks.stride(1) != 1:
            raise KernelError("the bytes of a row of blocks lie apart, expected them to follow each other")

    @classmethod
    def whole(cls, format: QuantFormat, k: int, blocks: Tensor) -> StoredWeight:
        """A tensor of a file: its rows are whole blocks. Raises KernelError where k is no multiple of a block."""
        if k % format.block_values:
            raise KernelError(
                f"a row has {k} values, expected a multiple of {format.block_values}, the values of a block of "
                f"{format.name}; dequantise the weight, or choose a format of smaller blocks"
            )
        return cls(format, blocks.shape[0], k, blocks)

    def rows(self, rows: range) -> StoredWeight:
        """Some of its rows, on the same memory."""
        return StoredWeight(
            self.format, len(rows), self.k, self.blocks[rows.start : rows.stop], self.first_column
        )

    def columns(self, columns: range) -> StoredWeight:
        """Some of its columns, on the same memory."""
        if not 0 <= columns.start < columns.stop <= self.k:
            raise KernelError(f"columns {columns.start}..{columns.stop} of a weight of {self.k} columns")
        values, size = self.format.block_values, self.format.block_bytes
        start, stop = self.first_column + columns.start, self.first_column + columns.stop
        first = start // values
        blocks = self.blocks[:, first * size : -(-stop // values) * size]
        return StoredWeight(self.format, self.n, len(columns), blocks, start - first * values)

    @property
    def size_bytes(self) -> int:
        return self.blocks.nbytes
