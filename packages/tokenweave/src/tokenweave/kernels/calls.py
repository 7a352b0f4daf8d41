"""What every call into the native library needs: dtype codes, row strides and head groups, cheaply."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from tokenweave.kernels.base import HeadLayout

DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1}  # tw_dtype


def row_stride(tensor: Tensor) -> int:
    """Elements from one row to the next; torch lets a single row have any stride."""
    rows, columns = tensor.shape
    return tensor.stride(0) if rows > 1 else columns


@lru_cache(maxsize=64)
def group_start_array(heads: HeadLayout) -> ctypes.Array[ctypes.c_int32]:
    """`heads.group_start` as C reads it."""
    return (ctypes.c_int32 * (heads.num_kv_heads + 1))(*heads.group_start)
