"""Random weights, so that a model need not be loaded to be measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interlace.models.footprint import Formats
from interlace.models.weights import WeightSource
from tokenweave.kernels import StoredWeight

if TYPE_CHECKING:
    from interlace.models.config import ModelConfig

SMALL_SCALE = 0x2C  # twice this byte is 0.065 as a float16; whatever the codes, nothing overflows


class RandomWeights(WeightSource):
    """Weights of the right shapes and of one size, for measuring: vectors are ones, blocks are all alike."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, formats: Formats | None = None) -> None:
        """`formats`: of the matrices that are in blocks."""
        super().__init__(config, ())
        self._dtype, self._formats = dtype, formats or {}
        self._noise = torch.randn(1 << 20).to(dtype) * 0.02

    def release_pages(self) -> None:
        """There are none."""

    def _read(self, name: str, rows: range, columns: range) -> Tensor:
        if len(self._shapes[name]) == 1:
            return torch.ones(len(rows), dtype=self._dtype)
        count = len(rows) * len(columns)
        return self._noise.repeat(-(-count // len(self._noise)))[:count].view(len(rows), len(columns))

    def quantised_as(self, name: str) -> str | None:
        return self._formats[name].name if name in self._formats else None

    def _read_stored(self, name: str, rows: range, columns: range) -> StoredWeight | None:
        form, skipped = self._formats[name], columns.start % self._formats[name].block_values
        blocks = torch.full(
            (len(rows), form.row_bytes(skipped + len(columns))), SMALL_SCALE, dtype=torch.uint8
        )
        return StoredWeight(form, len(rows), len(columns), blocks, skipped)
