"""Weights that are read when they are packed, some rows at a time, so that none lies in memory twice as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels import checks
from tokenweave.kernels.stored.formats import QuantFormat
from tokenweave.kernels.stored.weight import StoredWeight

PANEL_ROWS = (
    32  # rows of a panel of a packed weight, which is packed alone: PANEL in native/kernels/kernels.h
)
PIECE_VALUES = 1 << 17  # read at a time: half a megabyte of float32, which is packed while it is in a cache
DEVICE_PIECE_VALUES = (
    1 << 22
)  # for a device, where every piece is a call or more: 2,000 pieces of 8 billion weights


@dataclass(frozen=True, eq=False)
class LazyWeight:
    """A dense weight (n, k). `read` gives some of its rows, (len(rows), k) float32, bfloat16 or float16."""

    n: int
    k: int
    read: Callable[[range], Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.k

    def rows(self, rows: range) -> Tensor:
        """Reads some of its rows. Raises KernelError where they are not what the weight promises."""
        found = self.read(rows)
        checks.check_matrix("weight", found)
        _check_shape((len(rows), self.k), tuple(found.shape))
        return found

    def pieces(self, num_values: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """All rows in turn, whole panels of them: the first row of each piece, and the piece. As `piece_rows`."""
        return ((rows.start, self.rows(rows)) for rows in piece_rows(self.n, self.k, num_values))


@dataclass(frozen=True, eq=False)
class LazyStoredWeight:
    """A stored weight (n, k). `read` gives some of its rows, of the same format, columns and first column."""

    format: QuantFormat
    n: int
    k: int
    read: Callable[[range], StoredWeight]
    first_column: int = 0

    def rows(self, rows: range) -> StoredWeight:
        """Reads some of its rows. Raises KernelError where they are not what the weight promises."""
        found = self.read(rows)
        _check_shape((len(rows), self.k), (found.n, found.k))
        if (found.format, found.first_column) != (self.format, self.first_column):
            raise KernelError(
                f"rows that were read are {found.format.name} from value {found.first_column} of a block on, expected "
                f"{self.format.name} from value {self.first_column} on"
            )
        return found

    def pieces(self) -> Iterator[tuple[int, StoredWeight]]:
        """As `LazyWeight.pieces`."""
        return ((rows.start, self.rows(rows)) for rows in piece_rows(self.n, self.k))


def pieces_of(weight: Tensor | LazyWeight, num_values: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """The first row of each piece of a weight, and the piece. A tensor, which is in memory, is one."""
    return iter([(0, weight)]) if isinstance(weight, Tensor) else weight.pieces(num_values)


def piece_rows(n: int, k: int, num_values: int | None = None) -> Iterator[range]:
    """The rows of each piece of a weight (n, k), of about `num_values`: `PIECE_VALUES` unless it is given."""
    step = max(1, (num_values or PIECE_VALUES) // (PANEL_ROWS * max(1, k))) * PANEL_ROWS
    return (range(first, min(first + step, n)) for first in range(0, n, step))


def join(weights: Sequence[LazyWeight]) -> LazyWeight:
    """Weights with their rows stacked, as one."""
    if len(weights) == 1:
        return weights[0]

    def read(rows: range) -> Tensor:
        parts = [weights[at].rows(own) for at, own in _members([w.n for w in weights], rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return LazyWeight(sum(weight.n for weight in weights), weights[0].k, read)


def join_stored(weights: Sequence[StoredWeight | LazyStoredWeight]) -> LazyStoredWeight:
    """Stored weights of one format with their rows stacked, as one."""
    form, k, first_column = weights[0].format, weights[0].k, weights[0].first_column

    def read(rows: range) -> StoredWeight:
        parts = [weights[at].rows(own) for at, own in _members([w.n for w in weights], rows)]
        if len(parts) == 1:
            return parts[0]
        return StoredWeight(form, len(rows), k, torch.cat([part.blocks for part in parts]), first_column)

    return LazyStoredWeight(form, sum(weight.n for weight in weights), k, read, first_column)


def _members(sizes: Sequence[int], rows: range) -> Iterator[tuple[int, range]]:
    """Which of the weights that are stacked have some of `rows`, and which of their own rows these are."""
    first = 0
    for at, size in enumerate(sizes):
        own = range(max(rows.start - first, 0), min(rows.stop - first, size))
        if own:
            yield at, own
        first += size


def _check_shape(expected: tuple[int, int], got: tuple[int, ...]) -> None:
    if got != expected:
        raise KernelError(f"rows that were read are {got}, expected {expected}")
