"""Weights as products read them: dense ones as they are, others dequantised on the way (see `planes`).

FORMAT is a name of `planes.PLANE_FORMATS`, or "dense". Codes times scales are exact in float32; a minimum is added with
one rounding, as the format is defined; the value is rounded to the activations' dtype, as a dense weight would be.

A float of e4m3 has 4 bits of exponent and 3 of fraction. Shifted by 7 bits it is a float16 of a 256th of the value,
also where it is subnormal: no instruction for FP8 is needed. Its row's scale makes up for it, on the sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.backend.planes import STEP_BYTES
from tokenweave.kernels.cuda.backend.rounding import rounded

STEP = tl.constexpr(STEP_BYTES)


@triton.jit
def pointer_at(address, offset, DTYPE: tl.constexpr):
    """Of a plane, whose first byte is a multiple of 16."""
    return tl.multiple_of((address + offset).to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def load_tile_codes(
    address, row, is_row, begin, width, FORMAT: tl.constexpr, DTYPE: tl.constexpr, SIZE: tl.constexpr
):
    """(rows, SIZE) from place `begin` of a row on: values of DTYPE, or the bytes of codes."""
    at = tl.arange(0, SIZE)[None, :]
    if FORMAT == "dense":
        source = pointer_at(address, 0, DTYPE) + row * width + begin
        return tl.load(source + at, mask=is_row & (begin + at < width), other=0.0)
    elif FORMAT == "q4_0" or FORMAT == "q4_1" or FORMAT == "q4_k":
        source = pointer_at(address, 0, tl.uint8) + row * (width // 2) + begin
        return tl.load(source + at, mask=is_row, other=0)
    else:
        source = pointer_at(address, 0, tl.int8) + row * width + begin
        return tl.load(source + at, mask=is_row, other=0)


@triton.jit
def tile_values(
    codes,  # (rows, SIZE) of `load_tile_codes`
    half,  # which of the two in a byte, if there are two
    address,
    places,  # of `WeightShape.plane_places`
    row,  # (rows, 1)
    is_row,
    begin,  # the first of the values
    width,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The values that codes stand for, as DTYPE."""
    if FORMAT == "dense":
        return codes
    elif FORMAT == "fp8":
        return rounded(unscaled_fp8(codes), DTYPE)
    else:
        PART: tl.constexpr = 16 if FORMAT == "q6_k" else 32
        ROWS: tl.constexpr = codes.shape[0]
        PARTS: tl.constexpr = codes.shape[1] // PART
        part = begin // PART + tl.arange(0, PARTS)[None, :]
        scales = scales_at(address, places, row, is_row, part, FORMAT)
        values = tl.reshape(centred(codes, half, FORMAT), (ROWS, PARTS, PART)) * scales[:, :, None]
        if FORMAT == "q4_1" or FORMAT == "q4_k" or FORMAT == "q5_k":
            values += minima_at(address, places, row, is_row, part, FORMAT)[:, :, None]
        return rounded(tl.reshape(values, (ROWS, PARTS * PART)), DTYPE)


@triton.jit
def single_values(address, places, row, value, is_value, width, FORMAT: tl.constexpr):
    """Values `value` of a row, in any order, as float32."""
    PART: tl.constexpr = 16 if FORMAT == "q6_k" else 32
    if FORMAT == "q4_0" or FORMAT == "q4_1" or FORMAT == "q4_k":
        place = value // (2 * STEP) * STEP + value % STEP
        codes = tl.load(pointer_at(address, 0, tl.uint8) + row * (width // 2) + place, mask=is_value, other=0)
    else:
        codes = tl.load(pointer_at(address, 0, tl.int8) + row * width + value, mask=is_value, other=0)
    if FORMAT == "fp8":
        rows = row + tl.zeros_like(value)
        return unscaled_fp8(codes) * row_scales(address, places, rows, is_value)
    values = centred(codes, value // STEP % 2, FORMAT)
    values *= scales_at(address, places, row, is_value, value // PART, FORMAT)
    if FORMAT == "q4_1" or FORMAT == "q4_k" or FORMAT == "q5_k":
        values += minima_at(address, places, row, is_value, value // PART, FORMAT)
    return values


@triton.jit
def unscaled_fp8(codes):
    """A 256th of the values of e4m3 that the bits are, as float32."""
    bits = codes.to(tl.int16)
    return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def row_scales(address, places, row, is_row):
    """Of FP8: what sums of `unscaled_fp8` are multiplied by."""
    return tl.load(pointer_at(address, places[0], tl.float32) + row, mask=is_row, other=0.0)


@triton.jit
def centred(codes, half, FORMAT: tl.constexpr):
    """Codes as float32, as their scale multiplies them."""
    if FORMAT == "q4_0" or FORMAT == "q4_1" or FORMAT == "q4_k":
        codes = (codes.to(tl.int32) >> (4 * half)) & 15
    values = codes.to(tl.float32)
    return values - 8.0 if FORMAT == "q4_0" else values


@triton.jit
def scales_at(address, places, row, is_there, part, FORMAT: tl.constexpr):
    return factors_at(address, places[0], places[2], places, row, is_there, part, FORMAT)


@triton.jit
def minima_at(address, places, row, is_there, part, FORMAT: tl.constexpr):
    return factors_at(address, places[1], places[3], places, row, is_there, part, FORMAT)


@triton.jit
def factors_at(address, start, parts_start, places, row, is_there, part, FORMAT: tl.constexpr):
    """The float32 factors of parts of a row: a float16 each, or one for 256 values times a byte for each part."""
    factors = pointer_at(address, start, tl.float16) + row * places[4]
    if FORMAT == "q4_k" or FORMAT == "q5_k":
        sizes = pointer_at(address, parts_start, tl.uint8) + row * places[5]
        factor = tl.load(factors + part // 8, mask=is_there, other=0.0).to(tl.float32)
        return factor * tl.load(sizes + part, mask=is_there, other=0).to(tl.float32)
    elif FORMAT == "q6_k":
        sizes = pointer_at(address, parts_start, tl.int8) + row * places[5]
        factor = tl.load(factors + part // 16, mask=is_there, other=0.0).to(tl.float32)
        return factor * tl.load(sizes + part, mask=is_there, other=0).to(tl.float32)
    else:
        return tl.load(factors + part, mask=is_there, other=0.0).to(tl.float32)
