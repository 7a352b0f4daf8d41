"""Linear layers and embeddings over stored weights.

The native kernels quantise a row of x to int8, each 32 values with one scale, multiply codes exactly in integers, and
sum the products of blocks in float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels import checks
from tokenweave.kernels.activation import ACTIVATION_CODE, Activation
from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.lazy import LazyStoredWeight, join_stored
from tokenweave.kernels.memory import Arena
from tokenweave.kernels.stored.dequantise import dequantise
from tokenweave.kernels.stored.weight import StoredWeight
from tokenweave.kernels.values import PackedLinear, Tolerance
from tokenweave.native import ThreadPool, check_status

MAX_PARTS = 8  # TW_MAX_STORED_PARTS

# x of variance 1, weights of variance 1/k. The largest of 32 values of x is near 2.3, and a step is 1 / 127 of it; an
# error of half a step at most has a deviation of 2.3 / 127 / sqrt(12) = 0.0052 of a value of y. Five times that.
TOLERANCE = {torch.float32: Tolerance(0.0, 2.6e-2), torch.bfloat16: Tolerance(1e-2, 2.6e-2)}


class _Part(ctypes.Structure):
    """tw_stored_part."""

    _fields_ = [("packed", c_void_p), ("n", c_int64), ("format", c_int32)]


class _Stack(ctypes.Structure):
    """tw_stored_stack."""

    _fields_ = [
        ("first_column", c_int64),
        ("k", c_int64),
        ("num_parts", c_int32),
        ("parts", _Part * MAX_PARTS),
    ]


class StackPart(NamedTuple):
    """Rows of one format."""

    start_bytes: int  # where they begin in the stack's `data`
    n: int
    format_code: int


@dataclass(frozen=True, eq=False)
class PackedStack(PackedLinear):
    """Stored weights with their rows stacked, each in its own format, as the native kernels read them."""

    first_column: int = 0
    parts: tuple[StackPart, ...] = ()
    stack: _Stack = field(init=False)  # names places in `data`

    def __post_init__(self) -> None:
        start = self.data.data_ptr()
        stack = _Stack(self.first_column, self.k, len(self.parts))
        for index, part in enumerate(self.parts):
            stack.parts[index] = _Part(start + part.start_bytes, part.n, part.format_code)
        object.__setattr__(self, "stack", stack)


Stored = StoredWeight | LazyStoredWeight


def as_sequence(weights: Stored | Sequence[Stored]) -> tuple[Stored, ...]:
    return (weights,) if isinstance(weights, Stored) else tuple(weights)


def check_pack_stored(weights: Sequence[Stored], bias: Tensor | None, dtype: torch.dtype) -> None:
    """Raises unless the weights have as many columns, and the bias as many values as they have rows."""
    checks.check_dtype("dtype", dtype)
    widths = sorted({weight.k for weight in weights})
    if len(widths) != 1:
        raise KernelError(
            f"stored weights have {widths or 'no'} columns, expected all of a stack to have as many"
        )
    first_columns = sorted({weight.first_column for weight in weights})
    if len(first_columns) != 1 or len(weights) > MAX_PARTS:
        raise KernelError(
            f"a stack of {len(weights)} stored weights begins at values {first_columns} of their blocks, expected one "
            f"place and at most {MAX_PARTS} weights; dequantise them"
        )
    if bias is not None:
        checks.check_dtype("bias", bias.dtype)
        checks.check_dense("bias", bias, bias.dtype, (sum(weight.n for weight in weights),))


def format_names(weights: Sequence[Stored]) -> str:
    """The formats of a stack, each once, in order: "q4_k" or "q4_k+q6_k"."""
    return "+".join(dict.fromkeys(weight.format.name for weight in weights))


def reference_pack_stored(
    weights: Sequence[Stored],
    bias: Tensor | None,
    dtype: torch.dtype,
    layout: str,
    device: torch.device = checks.CPU,
) -> PackedLinear:
    """Keeps the dequantised values in float32, whatever the activations' dtype."""
    data = torch.cat([dequantise(weight.rows(range(weight.n))) for weight in weights]).to(device)
    n, k = data.shape
    bias = None if bias is None else bias.to(device, torch.float32, copy=True)
    return PackedLinear(n, k, dtype, layout, data, bias, format_names(weights))


def _stacked(weights: Sequence[Stored]) -> list[LazyStoredWeight]:
    """The same rows with neighbours of one format joined, so that fewer panels are ragged."""
    neighbours = groupby(weights, key=lambda weight: weight.format.name)
    return [join_stored(list(same)) for _, same in neighbours]


def native_pack_stored(
    pool: ThreadPool,
    arena: Arena,
    weights: Sequence[Stored],
    bias: Tensor | None,
    dtype: torch.dtype,
    layout: str,
) -> PackedStack:
    parts, k, first_column = _stacked(weights), weights[0].k, weights[0].first_column
    sizes = [_packed_bytes(pool, part, part.n) for part in parts]
    data = arena.take(sum(sizes))
    start_bytes, packed = 0, []
    for part, size in zip(parts, sizes, strict=True):
        _pack_part(pool, part, data.data_ptr() + start_bytes)
        packed.append(StackPart(start_bytes, part.n, part.format.code))
        start_bytes += size
    n = sum(part.n for part in parts)
    bias = None if bias is None else bias.to(torch.float32, copy=True)
    return PackedStack(n, k, dtype, layout, data, bias, format_names(parts), first_column, tuple(packed))


def _packed_bytes(pool: ThreadPool, part: LazyStoredWeight, num_rows: int) -> int:
    """Bytes of the packed panels that hold the first rows of a part."""
    size: int = pool.library.tw_stored_size_bytes(part.format.code, part.first_column, num_rows, part.k)
    return size


def _pack_part(pool: ThreadPool, part: LazyStoredWeight, place: int) -> None:
    for first, piece in part.pieces():
        status = pool.library.tw_pack_stored(
            pool.handle,
            piece.blocks.data_ptr(),
            row_stride(piece.blocks),
            part.format.code,
            part.first_column,
            piece.n,
            part.k,
            place + _packed_bytes(pool, part, first),
        )
        check_status(status, "pack_stored")


def native_stored_linear(pool: ThreadPool, x: Tensor, packed: PackedStack, out: Tensor | None) -> Tensor:
    if out is None:
        out = torch.empty((x.shape[0], packed.n), dtype=packed.dtype)
    status = pool.library.tw_stored_linear(
        pool.handle,
        x.data_ptr(),
        row_stride(x),
        byref(packed.stack),
        None if packed.bias is None else packed.bias.data_ptr(),
        out.data_ptr(),
        row_stride(out),
        x.shape[0],
        DTYPE_CODE[packed.dtype],
        DTYPE_CODE[out.dtype],
    )
    if status:
        check_status(status, "linear")
    return out


def check_gated_stacks(gate: PackedStack, up: PackedStack) -> None:
    """Raises unless both are one weight each whose columns begin at one value of a block."""
    places = gate.stack.first_column, up.stack.first_column
    if gate.stack.num_parts != 1 or up.stack.num_parts != 1 or places[0] != places[1]:
        raise KernelError(
            f"gate and up are stored as {gate.format} and {up.format} and begin at values {places} of their blocks, "
            "expected one format in each and one place; dequantise them"
        )


def native_stored_gated_linear(
    pool: ThreadPool, x: Tensor, gate: PackedStack, up: PackedStack, activation: Activation
) -> Tensor:
    m, n = x.shape[0], gate.n
    out = torch.empty((m, n), dtype=gate.dtype)
    status = pool.library.tw_stored_gated_linear(
        pool.handle,
        x.data_ptr(),
        row_stride(x),
        byref(gate.stack),
        None if gate.bias is None else gate.bias.data_ptr(),
        byref(up.stack),
        None if up.bias is None else up.bias.data_ptr(),
        out.data_ptr(),
        n,
        m,
        ACTIVATION_CODE[activation],
        DTYPE_CODE[gate.dtype],
    )
    if status:
        check_status(status, "gated_linear")
    return out


def native_stored_gather_rows(pool: ThreadPool, packed: PackedStack, ids: Tensor, first_row: int) -> Tensor:
    m = ids.shape[0]
    out = torch.empty((m, packed.k), dtype=packed.dtype)
    status = pool.library.tw_stored_gather_rows(
        pool.handle,
        byref(packed.stack),
        ids.data_ptr(),
        m,
        first_row,
        out.data_ptr(),
        DTYPE_CODE[packed.dtype],
    )
    if status:
        check_status(status, "gather_rows")
    return out
