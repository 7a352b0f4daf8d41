"""Parts that every call into the native library needs: dtype codes, row strides, head groups, and the structs of C."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from tokenweave.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenweave.kernels.values import HeadLayout


class _DtypeCodes(dict[torch.dtype, int]):
    """tw_dtype. A dtype that the native library does not know raises KernelError."""

    def __missing__(self, dtype: torch.dtype) -> int:
        raise KernelError(
            f"dtype is {dtype}, expected torch.float32 or torch.bfloat16: the native kernels have no others"
        )


DTYPE_CODE = _DtypeCodes({torch.float32: 0, torch.bfloat16: 1})


class AttentionBatchStruct(ctypes.Structure):
    """tw_attention_batch."""

    _fields_ = [
        ("cos_sin", c_void_p),
        ("max_position", c_int64),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("block_tables", c_void_p),
        ("max_blocks", c_int64),
        ("query_start", c_void_p),
        ("seq_lens", c_void_p),
        ("num_seqs", c_int64),
        ("m", c_int64),
    ]

    def assign(self, other: AttentionBatchStruct) -> None:
        """Becomes a copy of `other`, where it is: for calls that read it by its address."""
        ctypes.memmove(ctypes.byref(self), ctypes.byref(other), ctypes.sizeof(self))


class AttentionLayerStruct(ctypes.Structure):
    """tw_attention_layer."""

    _fields_ = [
        ("group_start", POINTER(c_int32)),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("scale", c_float),
        ("sliding_window", c_int32),
        ("softcap", c_float),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("norm_eps", c_float),
    ]


class ResidualNormsStruct(ctypes.Structure):
    """tw_residual_norms."""

    _fields_ = [("weight", c_void_p), ("post_weight", c_void_p), ("eps", c_float)]


def check_native_dtype(dtype: torch.dtype) -> None:
    """Raises KernelError for a dtype that the native library does not know."""
    DTYPE_CODE.__getitem__(dtype)


def row_stride(tensor: Tensor) -> int:
    """Elements from one row to the next; torch lets a single row have any stride."""
    rows, columns = tensor.shape
    return tensor.stride(0) if rows > 1 else columns


@lru_cache(maxsize=64)
def group_start_array(heads: HeadLayout) -> ctypes.Array[ctypes.c_int32]:
    """`heads.group_start` as C reads it."""
    return (ctypes.c_int32 * (heads.num_kv_heads + 1))(*heads.group_start)
