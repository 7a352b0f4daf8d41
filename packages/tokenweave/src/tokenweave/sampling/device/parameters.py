"""The wishes of a batch's rows: which features a pass must have, and one table of numbers that goes to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.sampling.reference import LARGEST, UINT64
from tokenweave.sampling.row import SamplingRow

# One row: seed, output index, top_k, slot; temperature, top_p, min_p and the three penalties. All are of 8 bytes, so
# that a table is one tensor.
PACKED = Struct("Qqqqdddddd")
NUM_FIELDS = PACKED.size // 8
FLOAT32_MAX = float(LARGEST)


@dataclass(frozen=True)
class Features:
    """The features that some row asks for. They and the number of rows decide which operations run, on which shapes."""

    draws: bool = False  # a temperature above 0; filters concern such rows alone
    penalises: bool = False
    has_top_k: bool = False
    has_top_p: bool = False
    has_min_p: bool = False
    max_logprobs: int | None = None  # a power of two, so that there are few; None: no row has any

    @staticmethod
    def of(rows: Sequence[SamplingRow], vocab_size: int) -> Features:
        """Those of `rows`."""
        drawn = [row for row in rows if row.temperature != 0]
        logprobs = [row.logprobs for row in rows if row.logprobs is not None]
        return Features(
            draws=bool(drawn),
            penalises=any(row.has_penalties for row in rows),
            has_top_k=any(0 < row.top_k < vocab_size for row in drawn),
            has_top_p=any(row.top_p < 1 for row in drawn),
            has_min_p=any(row.min_p > 0 for row in drawn),
            max_logprobs=min(_power_of_two(max(logprobs)), vocab_size) if logprobs else None,
        )


def _power_of_two(number: int) -> int:
    """The smallest from `number` on; 0 for 0."""
    return 1 << (number - 1).bit_length() if number > 0 else 0


class Parameters(NamedTuple):
    """The columns of a table on the device, a number for each row."""

    seed: Tensor  # (num_rows,) int64, the bits of an uint64
    output_index: Tensor  # (num_rows,) int64
    top_k: Tensor  # (num_rows,) int64; the vocabulary's size where it is off
    slot: Tensor  # (num_rows,) int64
    temperature: Tensor  # (num_rows, 1) float32, as the three after top_p and min_p
    top_p: Tensor  # (num_rows,) float64; 1 where it is off
    min_p: Tensor  # (num_rows, 1) float32
    repetition_penalty: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor

    @staticmethod
    def of(table: Tensor) -> Parameters:
        """Those of a table (num_rows, NUM_FIELDS) int64."""
        seed, output_index, top_k, slot, *_ = table.unbind(1)
        numbers = table[:, 4:].view(torch.float64)
        temperature, _, min_p, *penalties = numbers.to(torch.float32)[:, :, None].unbind(1)
        return Parameters(seed, output_index, top_k, slot, temperature, numbers[:, 1], min_p, *penalties)


def packed(
    rows: Sequence[SamplingRow], slots: Sequence[int], num_rows: int, spare: int, vocab_size: int
) -> Tensor:
    """The table (num_rows, NUM_FIELDS) int64 of `rows`, then of greedy ones without penalties, whose slot is `spare`.

    Raises KernelError for values that no row may have.
    """
    neutral = PACKED.pack(0, 0, vocab_size, spare, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    lines = [_line(row, slot, vocab_size) for row, slot in zip(rows, slots, strict=True)]
    lines += [neutral] * (num_rows - len(rows))
    numbers = np.frombuffer(bytearray().join(lines), dtype=np.int64)
    return torch.from_numpy(numbers).view(num_rows, NUM_FIELDS)


def _line(row: SamplingRow, slot: int, vocab_size: int) -> bytes:
    if not _is_allowed(row):
        raise KernelError(
            f"sample: got {row._replace(tokens=row.tokens[:0])}, expected numbers that a float32 holds: a temperature "
            f"of at least 0, a repetition_penalty and a top_p above 0, a min_p of at most 1"
        )
    top_k = row.top_k if 0 < row.top_k < vocab_size else vocab_size
    return PACKED.pack(
        row.seed & UINT64, row.output_index, top_k, slot, row.temperature, min(row.top_p, 1.0), row.min_p,
        row.repetition_penalty, row.frequency_penalty, row.presence_penalty,
    )  # fmt: skip


def _is_allowed(row: SamplingRow) -> bool:
    """Whether the native sampler would take it too."""
    return (
        0 <= row.temperature <= FLOAT32_MAX
        and row.top_p > 0
        and row.min_p <= 1
        and 0 < row.repetition_penalty <= FLOAT32_MAX
        and abs(row.frequency_penalty) <= FLOAT32_MAX
        and abs(row.presence_penalty) <= FLOAT32_MAX
    )
