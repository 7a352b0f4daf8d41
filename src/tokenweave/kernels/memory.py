"""Memory for the large tensors that kernels read: page aligned, zero, resident only once written."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A zeroed tensor on fresh pages, huge ones where the system offers them. The tensor owns them."""
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes == 0:
        return torch.zeros(tuple(shape), dtype=dtype)
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))
