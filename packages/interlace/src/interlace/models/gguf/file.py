"""Reads a GGUF file's header: metadata and tensor descriptions, with every length checked against the file.

`gguf.GGUFReader` makes several numpy arrays per string, two seconds for a vocabulary of 50,000; this reader walks
the same bytes in a hundredth of that, decodes arrays only when they are asked for, and trusts no length it reads.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from interlace.errors import ConfigError, CorruptFile

_VERSIONS = (2, 3)
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file: shape in row-major order, its last axis stored in blocks of quantised values."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int  # bytes from the start of the file
    size_bytes: int


class GgufFile:
    """A memory-mapped GGUF file. Thread safety: read-only once open.

    Raises:
        CorruptFile: no GGUF file, truncated, or damaged.
        ConfigError: a version or tensor type that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = self._map()
        cursor = _Cursor(path, self._data)
        tensor_count, field_count = self._read_preamble(cursor)
        self.fields: Mapping[str, Any] = _Fields(path, self._data, cursor.fields(field_count))
        self.tensors = self._read_tensors(cursor, tensor_count)
        self.header_size_bytes = cursor.at

    def bytes_of(self, tensor: TensorInfo) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The tensor's bytes as mapped, uint8 (all rows, bytes per row): only what is touched is read."""
        flat = np.frombuffer(self._data, dtype=np.uint8, count=tensor.size_bytes, offset=tensor.offset)
        return flat.reshape(math.prod(tensor.shape[:-1]), -1)

    def release_pages(self) -> None:
        """Gives the pages read so far back to the system; they are read again when touched."""
        self._data.madvise(mmap.MADV_DONTNEED)

    def _map(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise CorruptFile(f"{self.path} is empty; fetch the model again") from error
        except OSError as error:
            raise CorruptFile(f"{self.path} cannot be read: {error.strerror}") from error

    def _read_preamble(self, cursor: _Cursor) -> tuple[int, int]:
        magic = cursor.take(4)
        if magic != b"GGUF":
            raise CorruptFile(f"{self.path} starts with {magic!r}, expected b'GGUF'; it is not a GGUF file")
        version = cursor.scalar("<I")
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise ConfigError(
                f"{self.path} was written for big-endian machines, which is not supported; fetch the "
                "little-endian file of the model"
            )
        if version not in _VERSIONS:
            raise ConfigError(
                f"{self.path}: GGUF version {version} is not supported, expected one of {_VERSIONS}"
            )
        return cursor.scalar("<Q"), cursor.scalar("<Q")

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
        described = [cursor.tensor() for _ in cursor.counted(count, 24, "tensors")]
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise CorruptFile(f"{self.path}: general.alignment is {alignment!r}, expected a positive number")
        start = -(-cursor.at // alignment) * alignment
        tensors = {
            name: self._tensor(name, shape, code, start + offset) for name, shape, code, offset in described
        }
        self._check_places(list(tensors.values()), start, alignment)
        return tensors

    def _check_places(self, tensors: list[TensorInfo], start: int, alignment: int) -> None:
        """Raises: CorruptFile where a tensor begins between two places of the alignment, or inside another."""
        end, before = start, ""
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if (tensor.offset - start) % alignment:
                raise CorruptFile(
                    f"{self.path}: tensor {tensor.name!r} begins at byte {tensor.offset - start} of the data, expected "
                    f"a multiple of {alignment}; fetch the model again"
                )
            if tensor.offset < end:
                raise CorruptFile(
                    f"{self.path}: tensor {tensor.name!r} begins inside {before!r}, expected a place of its own; fetch "
                    "the model again"
                )
            end, before = tensor.offset + tensor.size_bytes, tensor.name

    def _tensor(self, name: str, shape: tuple[int, ...], code: int, offset: int) -> TensorInfo:
        try:
            kind = GGMLQuantizationType(code)
        except ValueError as error:
            raise ConfigError(f"{self.path}: tensor {name!r} has unknown quantisation type {code}") from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise CorruptFile(
                f"{self.path}: tensor {name!r} has rows of {shape[-1]} values, expected a multiple of the "
                f"{block} in a block of {kind.name}"
            )
        size_bytes = math.prod(shape) // block * block_bytes
        if offset + size_bytes > len(self._data):
            raise CorruptFile(
                f"{self.path} is truncated: tensor {name!r} ends at byte {offset + size_bytes}, the file has "
                f"{len(self._data)}; fetch the model again"
            )
        return TensorInfo(name, shape, kind, offset, size_bytes)


@dataclass(frozen=True)
class _ArrayAt:
    """An array in the metadata that has been stepped over, to be decoded when asked for."""

    at: int
    kind: int
    count: int


class _Fields(Mapping[str, Any]):
    """Metadata by key. Arrays are decoded at each look-up."""

    def __init__(self, path: Path, data: mmap.mmap, values: dict[str, Any]) -> None:
        self._path, self._data, self._values = path, data, values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _ArrayAt):
            return _Cursor(self._path, self._data, value.at).array(value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Cursor:
    """A position in the file. Every step checks that the file goes on that far."""

    def __init__(self, path: Path, data: mmap.mmap, at: int = 0) -> None:
        self.path, self.data, self.at = path, data, at

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise CorruptFile(
                f"{self.path} is truncated or damaged: its header asks for {count} bytes at byte {self.at}, "
                f"the file has {len(self.data)}; fetch the model again"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        raw = self.take(self.scalar("<Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFile(f"{self.path}: a string before byte {self.at} is not UTF-8: {error}") from error

    def counted(self, count: int, least_bytes: int, what: str) -> range:
        """range(count), once it is certain that so many could be in the file at all."""
        if count * least_bytes > len(self.data) - self.at:
            raise CorruptFile(
                f"{self.path} is truncated or damaged: its header promises {count} {what} after byte "
                f"{self.at}, the file has {len(self.data)} bytes; fetch the model again"
            )
        return range(count)

    def fields(self, count: int) -> dict[str, Any]:
        counted = self.counted(count, 13, "fields")
        return {self.string(): self._value(self.scalar("<I")) for _ in counted}

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._skip_array()
        raise CorruptFile(f"{self.path}: metadata before byte {self.at} has unknown type {kind}")

    def _skip_array(self) -> _ArrayAt:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        found = _ArrayAt(self.at, kind, count)
        if kind in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self._skip_strings(count)
        else:
            raise CorruptFile(
                f"{self.path}: metadata array before byte {self.at} has unsupported type {kind}"
            )
        return found

    def _skip_strings(self, count: int) -> None:
        self.counted(count, 8, "strings")
        length_at, at, data = struct.Struct("<Q").unpack_from, self.at, self.data
        last = len(data) - 8
        for _ in range(count):  # the hot loop of opening a file: 100,000 strings in some 20 ms
            if at > last:
                break
            at += 8 + length_at(data, at)[0]
        self.at = min(at, len(data))
        if at > len(data):
            self.take(at - len(data))

    def array(self, found: _ArrayAt) -> list[Any]:
        if found.kind == _STRING:
            return [self.string() for _ in range(found.count)]
        form = _SCALARS[found.kind]
        raw = self.take(found.count * struct.calcsize(form))
        values: list[Any] = np.frombuffer(raw, dtype=np.dtype(form)).tolist()
        return values

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape in row-major order, type code, offset from the start of the data."""
        name, dimensions = self.string(), self.scalar("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise CorruptFile(f"{self.path}: tensor {name!r} has {dimensions} dimensions, expected 1 to 4")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        if 0 in shape:
            raise CorruptFile(f"{self.path}: tensor {name!r} has an empty shape {shape[::-1]}")
        return name, shape[::-1], self.scalar("<I"), self.scalar("<Q")
