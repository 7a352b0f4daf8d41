"""Weights in blocks as the device keeps them: codes, scales and minima apart, each in a plane of its own.

A block of a file is 18 to 210 bytes and begins anywhere; a plane's rows can be read 16 bytes at a time. The values are
those of the file to the bit. Rows have whole steps of codes, filled up with zeros, and 16 factors or a multiple:

    bits of a code    values of a step    bytes of a step
    8                 64                  64: a code each
    4                 128                 64: byte i has value i in its low half, value 64 + i in its high half

Codes of 5 and 6 bits are kept as 8. Formats with blocks of 256 have a float16 for each, and a byte for each scale.

FP8 is made here, out of dense weights: a float of 8 bits (e4m3) for each value and one float32 scale for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels.stored.dequantise import half, nibbles, q5_k_codes, q6_k_codes, sub_scales
from tokenweave.kernels.stored.weight import StoredWeight

STEP_BYTES = 64
ALIGNMENT = 256  # bytes, of a plane's first
FP8_UNIT = 256.0  # what float16's bits have to be multiplied by where they are made of e4m3's
FACTORS = 16  # that rows have multiples of, so that the compiler knows them to be aligned


@dataclass(frozen=True, eq=False)
class Planes:
    """Rows of one weight. A scale of a block of 256 values is `scales` times the byte of `parts`; so are minima."""

    codes: Tensor  # (n, values) of 8 or 4 bits, uint8 or int8
    scales: Tensor  # (n, blocks) float16, or of FP8 (n, 1) float32
    minima: Tensor | None = None  # (n, blocks) float16
    parts: Tensor | None = None  # (n, values / 16 or 32) uint8 or int8
    minimum_parts: Tensor | None = None  # (n, values / 32) uint8

    def __iter__(self) -> Iterator[Tensor | None]:
        return (getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True)
class PlaneFormat:
    """How a format of blocks is kept."""

    name: str
    code_bits: int
    block_values: int  # of a float16 scale; 0: a row has one, of float32
    part_values: int  # of a scale's byte; 0: scales are float16 alone
    has_minimum: bool

    @property
    def step_values(self) -> int:
        return STEP_BYTES * 8 // self.code_bits

    def width(self, num_values: int) -> int:
        """Values that a row has room for: whole steps and whole blocks."""
        return _multiple(num_values, max(self.step_values, self.block_values))


PLANE_FORMATS = {
    form.name: form
    for form in (
        PlaneFormat("q4_0", 4, 32, 0, False),
        PlaneFormat("q4_1", 4, 32, 0, True),
        PlaneFormat("q8_0", 8, 32, 0, False),
        PlaneFormat("q4_k", 4, 256, 32, True),
        PlaneFormat("q5_k", 8, 256, 32, True),
        PlaneFormat("q6_k", 8, 256, 16, False),
        PlaneFormat("fp8", 8, 0, 0, False),
    )
}


@dataclass(frozen=True)
class PlaneLayout:
    """Where the planes of n rows lie, in bytes from the first."""

    format: PlaneFormat
    n: int
    width: int  # values that a row has room for

    @classmethod
    def of(cls, form: PlaneFormat, n: int, num_values: int) -> PlaneLayout:
        """The layout of n rows that have room for `num_values` from the first of a block on."""
        return cls(form, n, form.width(num_values))

    @property
    def num_factors(self) -> int:
        """The float16 numbers that a row of scales, or of minima, has room for: two in a float32."""
        if not self.format.block_values:
            return 2
        return _multiple(self.width // self.format.block_values, FACTORS)

    @property
    def num_parts(self) -> int:
        """The bytes that a row of parts has room for."""
        form = self.format
        return _multiple(self.width // form.part_values, FACTORS) if form.part_values else 0

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Of each plane, in the order of `Planes`; 0 for one that the format has not."""
        factors, parts = 2 * self.num_factors, self.num_parts
        minima = (factors, parts) if self.format.has_minimum else (0, 0)
        return (self.width * self.format.code_bits // 8, factors, minima[0], parts, minima[1])

    @property
    def starts(self) -> tuple[int, ...]:
        """Of each plane, and the end of the last."""
        starts = [0]
        for size in self.row_bytes:
            starts.append(starts[-1] + _multiple(self.n * size, ALIGNMENT))
        return tuple(starts)

    @property
    def size_bytes(self) -> int:
        return self.starts[-1]

    def fill(self, data: Tensor, first_row: int, weight: StoredWeight) -> None:
        """Writes some rows into `data` (size_bytes,) uint8, which is zeroed."""
        blocks = weight.blocks.contiguous().view(-1, weight.format.block_bytes)
        self._write(data, first_row, weight.n, _SPLIT[self.format.name](blocks))

    def fill_fp8(self, data: Tensor, first_row: int, weight: Tensor) -> None:
        """Rounds rows of a dense weight to FP8, and writes them.

        Raises:
            KernelError: values that are infinite or not a number.
        """
        self._write(data, first_row, len(weight), fp8_of(weight))

    def _write(self, data: Tensor, first_row: int, n: int, planes: Planes) -> None:
        for plane, start, size in zip(planes, self.starts, self.row_bytes, strict=False):
            if plane is not None:
                rows = plane.contiguous().view(torch.uint8).reshape(n, -1)
                if plane is planes.codes and self.format.code_bits == 4:
                    rows = in_halves(rows)
                own = data[start : start + self.n * size].view(self.n, size)
                own[first_row : first_row + n, : rows.shape[1]] = rows.to(data.device)


def _multiple(number: int, of: int) -> int:
    """The least multiple that is not smaller."""
    return -(-number // of) * of


def in_halves(codes: Tensor) -> Tensor:
    """Codes of 4 bits (n, values), two in a byte: (n, whole steps)."""
    missing = -codes.shape[1] % (2 * STEP_BYTES)
    low, high = torch.nn.functional.pad(codes, (0, missing)).view(len(codes), -1, 2, STEP_BYTES).unbind(2)
    return (low | (high << 4)).flatten(1)


def _q4_0(blocks: Tensor) -> Planes:
    return Planes(nibbles(blocks[:, 2:], 16), half(blocks, 0))


def _q4_1(blocks: Tensor) -> Planes:
    return Planes(nibbles(blocks[:, 4:], 16), half(blocks, 0), half(blocks, 2))


def _q8_0(blocks: Tensor) -> Planes:
    return Planes(blocks[:, 2:], half(blocks, 0))


def _with_minima(blocks: Tensor, codes: Tensor) -> Planes:
    return Planes(codes, half(blocks, 0), -half(blocks, 2), *sub_scales(blocks[:, 4:16]))


def _q4_k(blocks: Tensor) -> Planes:
    return _with_minima(blocks, nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Tensor) -> Planes:
    return _with_minima(blocks, q5_k_codes(blocks))


def _q6_k(blocks: Tensor) -> Planes:
    return Planes(q6_k_codes(blocks), half(blocks, 208), None, blocks[:, 192:208])


def fp8_of(weight: Tensor) -> Planes:
    """The largest value of a row is e4m3's largest. A scale has `FP8_UNIT` as a factor: see `weights`."""
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    if not largest.isfinite().all():
        raise KernelError("the weight has values that are not finite, which FP8 cannot hold; leave it dense")
    scales = (largest / torch.finfo(torch.float8_e4m3fn).max).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (weight.float() / scales).to(torch.float8_e4m3fn)
    return Planes(codes.view(torch.uint8), scales * FP8_UNIT)


_SPLIT: dict[str, Callable[[Tensor], Planes]] = {  # of blocks (num_blocks, block_bytes)
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
