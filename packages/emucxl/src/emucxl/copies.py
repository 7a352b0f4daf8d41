"""Copies that a copy engine is asked for, as rows of the core's table: of one piece, of pieces one stride apart, and of
pieces whose places are listed.
"""

from __future__ import annotations

import ctypes
from ctypes import c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from emucxl.arguments import instance
from emucxl.errors import ArgumentError, ArgumentTypeError, OutOfBoundsError, UnavailableError

if TYPE_CHECKING:
    from emucxl.exports import Export, Exports

_MAY_BE_LEFT_OUT = ("size", "destination_stride", "source_stride")
_FIGURES = (*_MAY_BE_LEFT_OUT, "destination_offset", "source_offset", "num_pieces")


@dataclass(frozen=True)
class Copy:
    """`size` bytes from `source` to `destination`: buffers of the engine's context, whose side is priced, or any other
    contiguous memory (`bytes` as a source, `bytearray`, NumPy arrays), whose side is not.

    With `num_pieces` it is as many copies of `size` bytes, one stride apart on either side: the same as one Copy for
    each, and as quick to submit as one.
    """

    destination: Any
    source: Any
    size: int | None = None
    """Everything that fits both, where it is left out; of a single piece."""
    destination_offset: int = 0
    source_offset: int = 0
    num_pieces: int = 1
    destination_stride: int | None = None
    """Bytes from one piece's beginning to the next one's: at least `size`, and just that where it is left out."""
    source_stride: int | None = None
    """Likewise; it may be less than `size`, and 0 reads the same bytes for all pieces."""


@dataclass(frozen=True, eq=False)
class IndexedCopy:
    """Pieces of `size` bytes whose places are listed: piece i from `source_offsets[i]` of `source` to
    `destination_offsets[i]` of `destination`.

    It is what a Copy for each piece, in this order, would be: bytes, modelled time and counts. It costs the caller
    about as much as one. It needs NumPy.
    """

    destination: Any
    source: Any
    size: int
    destination_offsets: Any
    """Bytes from the memory's beginning: integers, (num_pieces,), as NumPy's `asarray` takes them. An array of int64 is
    used as it is."""
    source_offsets: Any


class Pattern(ctypes.Structure):
    """emx_copy_pattern."""

    _fields_ = (
        ("destination", c_void_p),
        ("source", c_void_p),
        ("size_bytes", c_size_t),
        ("num_pieces", c_size_t),
        ("destination_stride_bytes", c_size_t),
        ("source_stride_bytes", c_size_t),
    )


def patterns_of(copy: Any, exports: Exports) -> bytes:
    """The rows of a `Copy`, an `IndexedCopy` or a (destination, source, size): Patterns, one after the other.

    Raises:
        OutOfBoundsError: a piece leaves its memory.
        ArgumentError: a destination is read-only, something is no contiguous memory, or a figure makes no sense.
        UnavailableError: offsets are listed, and there is no NumPy.
    """
    if isinstance(copy, IndexedCopy):
        return _indexed(copy, exports)
    if not isinstance(copy, Copy) and not (isinstance(copy, tuple | list) and 2 <= len(copy) <= 5):
        raise ArgumentTypeError(
            f"got the copy {copy!r}; expected a Copy, an IndexedCopy, or (destination, source, size)"
        )
    return bytes(_pattern(copy if isinstance(copy, Copy) else Copy(*copy), exports))


def _pattern(wanted: Copy, exports: Exports) -> Pattern:
    for name in _FIGURES:
        figure = getattr(wanted, name)
        if type(figure) is not int and (figure is not None or name not in _MAY_BE_LEFT_OUT):
            instance(name, figure, int, "an integer")
    to, source = exports.of(wanted.destination, writable=True), exports.of(wanted.source, writable=False)
    size = _size_of(wanted, to, source)
    to_stride = size if wanted.destination_stride is None else wanted.destination_stride
    source_stride = size if wanted.source_stride is None else wanted.source_stride
    is_inside = (
        min(wanted.num_pieces, to_stride, source_stride, size) >= 0
        and _is_inside(wanted.destination_offset, to_stride, size, wanted.num_pieces, to.size_bytes)
        and _is_inside(wanted.source_offset, source_stride, size, wanted.num_pieces, source.size_bytes)
    )
    if not is_inside:
        raise OutOfBoundsError(
            f"got {_told(wanted, size)} from offset {wanted.source_offset:,} of {source.size_bytes:,} to offset "
            f"{wanted.destination_offset:,} of {to.size_bytes:,}; expected ranges that lie inside"
        )
    return Pattern(
        to.address + wanted.destination_offset,
        source.address + wanted.source_offset,
        size,
        wanted.num_pieces,
        to_stride,
        source_stride,
    )


def _size_of(wanted: Copy, to: Export, source: Export) -> int:
    """Bytes of a piece."""
    if wanted.size is not None:
        return wanted.size
    if wanted.num_pieces != 1:
        raise ArgumentError(f"got no size for {wanted.num_pieces} pieces; expected that of each")
    return min(to.size_bytes - wanted.destination_offset, source.size_bytes - wanted.source_offset)


def _is_inside(offset: int, stride: int, size: int, num_pieces: int, size_bytes: int) -> bool:
    """Whether all pieces lie in memory of `size_bytes`."""
    return offset >= 0 and (offset + max(0, num_pieces - 1) * stride + size) <= size_bytes


def _told(wanted: Copy, size: int) -> str:
    if wanted.num_pieces == 1:
        return f"a copy of {size:,} bytes"
    strides = f"{wanted.destination_stride} and {wanted.source_stride} bytes apart"
    return f"{wanted.num_pieces:,} copies of {size:,} bytes, {strides},"


def _indexed(wanted: IndexedCopy, exports: Exports) -> bytes:
    np = _numpy()
    instance("size", wanted.size, int, "an integer")
    if wanted.size < 0:
        raise OutOfBoundsError(f"got pieces of {wanted.size:,} bytes; expected at least 0")
    to, source = exports.of(wanted.destination, writable=True), exports.of(wanted.source, writable=False)
    to_offsets = _offsets("destination", wanted.destination_offsets, wanted.size, to)
    source_offsets = _offsets("source", wanted.source_offsets, wanted.size, source)
    if to_offsets.size != source_offsets.size:
        raise ArgumentError(
            f"got {to_offsets.size:,} offsets of the destination and {source_offsets.size:,} of the source; "
            "expected one of each for every piece"
        )
    table = np.zeros(to_offsets.size, _row())
    table["destination"] = to_offsets + to.address
    table["source"] = source_offsets + source.address
    table["size_bytes"] = wanted.size
    table["num_pieces"] = 1
    rows: bytes = table.tobytes()
    return rows


def _offsets(side: str, listed: Any, size: int, memory: Export) -> Any:
    """The offsets of one side, (num_pieces,) of int64; all pieces lie inside its memory."""
    np = _numpy()
    offsets = np.asarray(listed)
    if offsets.ndim != 1 or (offsets.dtype.kind not in "iu" and offsets.size > 0):
        raise ArgumentTypeError(
            f"got {side}_offsets of {offsets.dtype} in {offsets.ndim} dimensions; expected integers in one"
        )
    # Of 64 bits without a sign, offsets that leave every memory become negative.
    signed = offsets.astype(np.int64, copy=False)
    is_outside = (signed < 0) | (signed > memory.size_bytes - size)
    if is_outside.any():
        first = int(is_outside.argmax())
        raise OutOfBoundsError(
            f"got piece {first:,} of {offsets.size:,}, of {size:,} bytes, at offset {int(offsets[first]):,} of the "
            f"{side}'s {memory.size_bytes:,} bytes; expected offsets from 0 to {memory.size_bytes - size:,}"
        )
    return signed


@cache
def _row() -> Any:
    """The dtype of a Pattern. Making one takes longer than filling a table with a hundred."""
    return _numpy().dtype(Pattern)


def _numpy() -> Any:
    try:
        import numpy as np
    except ModuleNotFoundError:
        raise UnavailableError("copies with listed offsets need NumPy; pip install 'emucxl[numpy]'") from None
    return np
