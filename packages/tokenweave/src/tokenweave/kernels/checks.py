"""The checks of what kernels are given: cheap, and their errors say what was got and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels.activation import ACTIVATION_CODE
from tokenweave.kernels.paging import BLOCK_SIZE, blocks_for
from tokenweave.kernels.values import DTYPES, HeadLayout, PackedLinear

NATIVE_HEAD_ALIGNMENT = 16
CPU = torch.device("cpu")


def check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise KernelError(
            f"{name} is {dtype}, expected torch.float32, torch.bfloat16 or torch.float16; convert it"
        )


def check_dense(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
) -> None:
    """Raises unless `tensor` is on `device`, contiguous, of `dtype` and `shape`. Half a microsecond if it is."""
    is_there = tensor.is_cpu if device is CPU else tensor.device == device  # the first takes half as long
    if is_there and tensor.shape == shape and tensor.dtype is dtype and tensor.is_contiguous():
        return
    raise KernelError(
        f"{name} is {_describe(tensor)}, expected {dtype} {tuple(shape)} {_place(device)}, contiguous"
    )


def check_rows(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
) -> None:
    """As `check_dense`, but the rows of a wider matrix are accepted: each contiguous, none overlapping."""
    is_there = tensor.is_cpu if device is CPU else tensor.device == device
    if is_there and tensor.shape == shape and tensor.dtype is dtype:
        if tensor.is_contiguous():
            return
        row_stride, stride = tensor.stride()
        if stride == 1 and row_stride >= shape[1]:
            return
    wanted = f"{dtype} {tuple(shape)} {_place(device)}, its rows contiguous"
    raise KernelError(f"{name} is {_describe(tensor)}, expected {wanted}")


def device_of(tensor: Tensor) -> torch.device:
    """Where `tensor` lies: `CPU` itself if it lies there, so that what is compared with it is compared fast."""
    return CPU if tensor.is_cpu else tensor.device


def device_called(name: str | torch.device) -> torch.device:
    """Returns the device as its tensors name it, "cuda" as "cuda:0"; `CPU` itself for the CPU."""
    return device_of(torch.empty(0, device=name))


def check_device(name: str, got: torch.device, expected: torch.device) -> None:
    if got != expected:
        raise KernelError(f"{name} lies {_place(got)}, expected {_place(expected)}; move it first")


def _place(device: torch.device) -> str:
    return "on the CPU" if device.type == "cpu" else f"on {device}"


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device} with strides {tensor.stride()}"


def check_matrix(name: str, tensor: Tensor, width: int | None = None, device: torch.device = CPU) -> None:
    """Raises unless `tensor` is (rows, width) of a kernel's dtype, with contiguous rows."""
    check_dtype(name, tensor.dtype)
    if tensor.dim() != 2:
        raise KernelError(f"{name} has shape {tuple(tensor.shape)}, expected two dimensions")
    rows, columns = tensor.shape
    check_rows(name, tensor, tensor.dtype, (rows, columns if width is None else width), device)


def check_layout(packed: PackedLinear, layout: str) -> None:
    if packed.layout != layout:
        raise KernelError(
            f"weight is packed as {packed.layout!r}, expected {layout!r}; pack it with these kernels"
        )


def check_linear(
    x: Tensor, packed: PackedLinear, out: Tensor | None, layout: str, device: torch.device = CPU
) -> None:
    check_layout(packed, layout)
    check_rows("x", x, packed.dtype, (*x.shape[:1], packed.k), device)
    if out is not None:
        expected = torch.float32 if out.dtype is torch.float32 else x.dtype
        check_rows("out", out, expected, (x.shape[0], packed.n), device)


def check_gated_linear(
    x: Tensor, gate: PackedLinear, up: PackedLinear, activation: str, layout: str, device: torch.device = CPU
) -> None:
    for packed in (gate, up):
        check_linear(x, packed, None, layout, device)
    if activation not in ACTIVATION_CODE:
        raise KernelError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATION_CODE)}")
    if (gate.n, gate.dtype) != (up.n, up.dtype):
        raise KernelError(
            f"gate has {gate.n} rows of {gate.dtype}, up {up.n} of {up.dtype}, expected both alike"
        )
    if (gate.format is None) != (up.format is None):
        raise KernelError(
            f"gate and up are stored as {gate.format} and {up.format}, expected both in blocks or both dense"
        )


def check_ids(ids: Tensor, device: torch.device = CPU) -> None:
    check_dense("ids", ids, torch.int32, (ids.numel(),), device)


def check_norm(x: Tensor, weight: Tensor, device: torch.device = CPU) -> None:
    check_matrix("x", x, device=device)
    check_dense("weight", weight, x.dtype, x.shape[1:], device)


def check_gate_up(gate_up: Tensor, device: torch.device = CPU) -> None:
    check_matrix("gate_up", gate_up, device=device)
    if gate_up.shape[1] % 2:
        raise KernelError(f"gate_up has {gate_up.shape[1]} columns, expected an even number, [gate | up]")


def check_heads(
    heads: HeadLayout, cache_layer: Tensor, dtype: torch.dtype, device: torch.device = CPU
) -> None:
    check_dense("cache_layer", cache_layer, dtype, (*cache_layer.shape[:1], *heads.block_shape), device)


def check_native_heads(heads: HeadLayout) -> None:
    if heads.head_dim % NATIVE_HEAD_ALIGNMENT:
        raise KernelError(
            f"head_dim is {heads.head_dim}, expected a multiple of {NATIVE_HEAD_ALIGNMENT}; "
            'widen the heads with zeros, or use kernels="reference"'
        )


def check_rope_indices(rows: Tensor, slots: Tensor, num_rotations: int, num_blocks: int) -> None:
    """Raises unless every token has its row of the rotations and every slot lies in the cache."""
    sizes = (("rotation_rows", rows, num_rotations), ("slots", slots, num_blocks * BLOCK_SIZE))
    for name, index, size in sizes:
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise KernelError(f"{name} span {int(index.min())}..{int(index.max())}, expected 0..{size - 1}")


def check_sequences(
    block_tables: Tensor, query_start: Tensor, seq_lens: Tensor, num_rows: int, num_blocks: int
) -> None:
    """Raises unless the sequences own all rows in order and every key lies in a block of the cache."""
    starts, lens = query_start.tolist(), seq_lens.tolist()
    if starts[0] != 0 or starts[-1] != num_rows or starts != sorted(starts):
        raise KernelError(f"query_start is {starts}, expected to rise from 0 to the {num_rows} tokens")
    for s, (first, last, length) in enumerate(zip(starts[:-1], starts[1:], lens, strict=True)):
        if length < last - first or length > block_tables.shape[1] * BLOCK_SIZE:
            raise KernelError(
                f"sequence {s} has {length} keys, expected at least its {last - first} new tokens "
                f"and at most the {block_tables.shape[1] * BLOCK_SIZE} slots of its block table"
            )
        used = block_tables[s, : blocks_for(length)]
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < num_blocks:
            raise KernelError(
                f"block table of sequence {s} names blocks {int(used.min())}..{int(used.max())}, "
                f"expected 0..{num_blocks - 1}"
            )
