"""Linear layers and embeddings over a weight packed once."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels import checks
from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.lazy import LazyWeight, pieces_of
from tokenweave.kernels.memory import Arena
from tokenweave.kernels.values import PackedLinear, Tolerance
from tokenweave.native import ThreadPool, check_status

# x of variance 1, weights of variance 1/k: float32 differs by the order of sums, bfloat16 by a rounding of y.
TOLERANCE = {
    torch.float32: Tolerance(1e-4, 2e-5),
    torch.bfloat16: Tolerance(1.6e-2, 4e-3),
    torch.float16: Tolerance(2e-3, 5e-4),
}


def check_pack(weight: Tensor | LazyWeight, bias: Tensor | None, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to pack as. Raises unless the weight is a matrix, and the bias has a value for each of its rows."""
    if isinstance(weight, Tensor):
        checks.check_matrix("weight", weight)
        dtype = dtype or weight.dtype
    if dtype is None:
        raise KernelError("dtype is None, expected one for a weight that is read as it is packed; name it")
    checks.check_dtype("dtype", dtype)
    if bias is not None:
        checks.check_dtype("bias", bias.dtype)
        checks.check_dense("bias", bias, bias.dtype, (weight.shape[0],))
    return dtype


def reference_pack(
    weight: Tensor | LazyWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    layout: str,
    device: torch.device = checks.CPU,
) -> PackedLinear:
    """Keeps the values that `dtype` can hold, as float32: the reference multiplies in float32."""
    n, k = weight.shape
    data = torch.empty(n, k, device=device)
    for first, piece in pieces_of(weight):
        data[first : first + len(piece)] = piece.to(dtype)
    own_bias = None if bias is None else bias.to(device, torch.float32, copy=True)
    return PackedLinear(n, k, dtype, layout, data, own_bias)


def reference_linear(x: Tensor, packed: PackedLinear, out: Tensor | None) -> Tensor:
    y = torch.nn.functional.linear(x.float(), packed.data, packed.bias)
    return y.to(x.dtype) if out is None else out.copy_(y)


def reference_gather_rows(packed: PackedLinear, ids: Tensor, first_row: int) -> Tensor:
    rows = ids.long() - first_row
    held = (rows >= 0) & (rows < packed.n)
    gathered = packed.data[rows.clamp(0, packed.n - 1)] * held.unsqueeze(1)
    return gathered.to(packed.dtype)


def native_pack(
    pool: ThreadPool,
    arena: Arena,
    weight: Tensor | LazyWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    layout: str,
) -> PackedLinear:
    (n, k), library = weight.shape, pool.library
    data = arena.take(library.tw_packed_size_bytes(n, k, DTYPE_CODE[dtype]))
    for first, piece in pieces_of(weight):
        source, code = piece.data_ptr(), DTYPE_CODE[piece.dtype]
        place = data.data_ptr() + library.tw_packed_size_bytes(first, k, DTYPE_CODE[dtype])
        status = library.tw_pack(
            pool.handle, source, row_stride(piece), code, len(piece), k, place, DTYPE_CODE[dtype]
        )
        check_status(status, "pack")
    return PackedLinear(
        n, k, dtype, layout, data, None if bias is None else bias.to(torch.float32, copy=True)
    )


def native_linear(pool: ThreadPool, x: Tensor, packed: PackedLinear, out: Tensor | None) -> Tensor:
    m, n, dtype = x.shape[0], packed.n, DTYPE_CODE[packed.dtype]
    if out is None:
        out = torch.empty((m, n), dtype=packed.dtype)
    status = pool.library.tw_linear(
        pool.handle,
        x.data_ptr(),
        row_stride(x),
        packed.data.data_ptr(),
        None if packed.bias is None else packed.bias.data_ptr(),
        out.data_ptr(),
        row_stride(out),
        m,
        n,
        packed.k,
        dtype,
        DTYPE_CODE[out.dtype],
    )
    if status:
        check_status(status, "linear")
    return out


def native_gather_rows(pool: ThreadPool, packed: PackedLinear, ids: Tensor, first_row: int) -> Tensor:
    m, n, k = ids.shape[0], packed.n, packed.k
    out = torch.empty((m, k), dtype=packed.dtype)
    data, dtype = packed.data.data_ptr(), DTYPE_CODE[packed.dtype]
    status = pool.library.tw_gather_rows(
        pool.handle, data, ids.data_ptr(), m, first_row, n, k, out.data_ptr(), dtype
    )
    if status:
        check_status(status, "gather_rows")
    return out
