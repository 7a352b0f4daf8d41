"""Weaver: rank 0's decision, once for each batch, whether its tokens are cut in two and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenweave.split import alignment_of, middle

if TYPE_CHECKING:
    from interlace.engine.config import EngineConfig
    from interlace.models.batch import ForwardBatch

ROW_TILE = 12  # rows of a tile of the native matrix products: ROW_TILE in native/kernels/kernels.h


class Weaver:
    """Thread safety: one caller at a time."""

    def __init__(self, config: EngineConfig, size: int) -> None:
        self._mode = config.weave if size > 1 else "never"
        self._alignment = alignment_of(ROW_TILE, size)

    def split(self, batch: ForwardBatch) -> int | None:
        """The row to split `batch` at; None: leave it whole."""
        if self._mode != "always" or batch.num_tokens < 2:
            return None
        return middle(batch.num_tokens, self._alignment)
