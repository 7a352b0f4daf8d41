"""KVCache: one rank's KV cache, allocated."""

from __future__ import annotations

import torch
from torch import Tensor

from emucxl.errors import EmucxlError
from interlace.engine.cache.layout import CacheLayout
from interlace.engine.cache.memory import MemorySource, default_source
from interlace.engine.cache.sizing import free_device_bytes
from interlace.errors import EngineError
from tokenweave.kernels import Kernels


class KVCache:
    """Keys and values of every block, for the KV heads of one rank.

    `tensor` is (num_layers, num_blocks, *heads.block_shape), in the kernels' own order inside a block.
    """

    def __init__(
        self, kernels: Kernels, layout: CacheLayout, num_blocks: int, source: MemorySource | None = None
    ) -> None:
        """Takes the memory of `num_blocks` blocks from `source`, which belongs to the cache from here on.

        The source has to bring it where the kernels compute, as the one does that is taken if none is given.

        Raises:
            EngineError: there is not that much, however little of it would be used.
        """
        self._source = source or default_source(kernels.device)
        try:
            self.tensor: Tensor = kernels.new_kv_cache(
                layout.num_layers, num_blocks, layout.heads, layout.dtype, self._source.zeros
            )
        except (EmucxlError, OSError, OverflowError, torch.OutOfMemoryError) as error:
            self._source.close()
            raise EngineError(
                f"got a KV cache of {num_blocks:,} blocks, {layout.size_bytes(num_blocks):,} bytes; the system "
                f"grants no such room{_that_fit(kernels.device, layout)}: lower num_kv_blocks or kv_cache_gb ({error})"
            ) from error

    def close(self) -> None:
        """Gives the memory back. The cache is of no more use."""
        del self.tensor
        self._source.close()


def _that_fit(device: torch.device, layout: CacheLayout) -> str:
    """How many blocks a GPU has room for, as a part of a sentence; nothing about other memory."""
    if device.type != "cuda" or not layout.block_bytes:
        return ""
    return f", {free_device_bytes(device) // layout.block_bytes:,} blocks would fit"
