"""Weights in blocks and in FP8 on the device: kept as codes and scales (`planes`), dequantised by what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenweave.kernels.activation import Activation
from tokenweave.kernels.cuda.backend.gather import gather_values
from tokenweave.kernels.cuda.backend.planes import PLANE_FORMATS, PlaneLayout
from tokenweave.kernels.cuda.backend.products import WeightShape, multiply_rows
from tokenweave.kernels.lazy import DEVICE_PIECE_VALUES, LazyWeight, piece_rows, pieces_of
from tokenweave.kernels.stored.linear import Stored, format_names
from tokenweave.kernels.values import PackedLinear


@dataclass(frozen=True, eq=False)
class BlockRows:
    """Rows of one format that follow each other."""

    shape: WeightShape
    data: Tensor  # uint8: the planes
    bias: Tensor | None  # (n,) float32


@dataclass(frozen=True, eq=False)
class DeviceBlocks(PackedLinear):
    """Stored weights with their rows stacked, each in its own format. `data` has the planes of all."""

    parts: tuple[BlockRows, ...] = ()


def pack_blocks(
    weights: Sequence[Stored], bias: Tensor | None, dtype: torch.dtype, device: torch.device, layout: str
) -> DeviceBlocks:
    k, first_column = weights[0].k, weights[0].first_column
    planes = [PlaneLayout.of(PLANE_FORMATS[each.format.name], each.n, first_column + k) for each in weights]
    data = torch.zeros(sum(each.size_bytes for each in planes), dtype=torch.uint8, device=device)
    own_bias = None if bias is None else bias.to(device, torch.float32, copy=True)
    parts, place, first = [], 0, 0
    for weight, own in zip(weights, planes, strict=True):
        rows = BlockRows(
            WeightShape(weight.n, k, own, first_column),
            data[place : place + own.size_bytes],
            None if own_bias is None else own_bias[first : first + weight.n],
        )
        for piece in piece_rows(weight.n, k, DEVICE_PIECE_VALUES):
            own.fill(rows.data, piece.start, weight.rows(piece))
        parts.append(rows)
        place += own.size_bytes
        first += weight.n
    return DeviceBlocks(first, k, dtype, layout, data, own_bias, format_names(weights), tuple(parts))


def pack_fp8(
    weight: Tensor | LazyWeight, bias: Tensor | None, dtype: torch.dtype, device: torch.device, layout: str
) -> DeviceBlocks:
    (n, k), form = weight.shape, PLANE_FORMATS["fp8"]
    planes = PlaneLayout.of(form, n, k)
    data = torch.zeros(planes.size_bytes, dtype=torch.uint8, device=device)
    for first, piece in pieces_of(weight, DEVICE_PIECE_VALUES) if n and k else ():
        planes.fill_fp8(data, first, piece.to(device))
    bias = None if bias is None else bias.to(device, torch.float32, copy=True)
    rows = BlockRows(WeightShape(n, k, planes), data, bias)
    return DeviceBlocks(n, k, dtype, layout, data, bias, form.name, (rows,))


def linear_of_blocks(x: Tensor, packed: DeviceBlocks, out: Tensor | None) -> Tensor:
    if out is None:
        out = torch.empty((x.shape[0], packed.n), dtype=packed.dtype, device=x.device)
    first = 0
    for part in packed.parts:
        own = out[:, first : first + part.shape.n]
        multiply_rows(x, part.shape, part.data, None, part.bias, own)
        first += part.shape.n
    return out


def are_multiplied_together(gate: DeviceBlocks, up: DeviceBlocks) -> bool:
    """Whether one product takes both, and the activation: they are kept alike, and have no bias."""
    shapes = [[part.shape for part in packed.parts] for packed in (gate, up)]
    return len(shapes[0]) == 1 and shapes[0] == shapes[1] and gate.bias is None and up.bias is None


def gated_linear_of_blocks(x: Tensor, gate: DeviceBlocks, up: DeviceBlocks, activation: Activation) -> Tensor:
    """Of weights that `are_multiplied_together`."""
    out = torch.empty((x.shape[0], gate.n), dtype=gate.dtype, device=x.device)
    (own,), (others,) = gate.parts, up.parts
    multiply_rows(x, own.shape, own.data, others.data, None, out, is_silu=activation == "silu")
    return out


def gather_rows_of_blocks(packed: DeviceBlocks, ids: Tensor, first_row: int) -> Tensor:
    out = torch.zeros((ids.shape[0], packed.k), dtype=packed.dtype, device=ids.device)
    for part in packed.parts:
        gather_values(part.data, part.shape, ids, first_row, out)
        first_row += part.shape.n
    return out
