"""Weights from a GGUF model: memory-mapped, read slice by slice, dequantised or as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from torch import Tensor

from interlace.errors import ConfigError, ModelError
from interlace.models.gguf.config import read_gguf_config
from interlace.models.gguf.file import TensorInfo
from interlace.models.gguf.parts import GgufModel
from interlace.models.leftovers import refuse_unread_tensors
from interlace.models.weight_map import Place, gguf_format, gguf_places
from interlace.models.weights import WeightSource, place_weights
from tokenweave.kernels import FORMATS, StoredWeight

_CHUNK_VALUES = (
    1 << 16
)  # dequantised at a time: the working set of numpy's passes stays in the second-level cache
# Their rows are reordered by llama.cpp's converter, for models of some families (`permutes_heads`).
_PERMUTED = ("q", "k", "q_bias", "k_bias")

_Floats = np.ndarray[Any, np.dtype[np.float32]]
_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class GgufSource(WeightSource):
    """The weights of a GGUF file or of all parts of one, as float32 whatever their quantisation, or as blocks.

    Raises:
        CorruptFile: no GGUF file, truncated, damaged, or a tensor or a part missing.
        ConfigError: an architecture, version or quantisation that is not supported.
        ShapeMismatch: a tensor's shape is not what the metadata calls for.
    """

    def __init__(self, path: Path) -> None:
        self.file = GgufModel(path)
        self._read_vectors: set[str] = set()
        shapes = {name: tensor.shape for name, tensor in self.file.tensors.items()}
        try:
            config = read_gguf_config(self.file.fields, shapes, self._vector)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        super().__init__(config, self.file.files)
        self._places = place_weights(config, gguf_places(config), shapes, self.file.file_of, path)
        read = {*self._read_vectors, *(place.tensor for place in self._places.values())}
        refuse_unread_tensors(shapes, read, self.file.file_of)
        self._head_dim = config.head_dim if gguf_format(config).permutes_heads else 1

    def _vector(self, tensor: str) -> tuple[float, ...]:
        self._read_vectors.add(tensor)
        info = self.file.tensors[tensor]
        return tuple(self._values(info, range(1), range(info.shape[-1])).flatten().tolist())

    def _read(self, name: str, rows: range, columns: range) -> Tensor:
        place = self._places[name]
        tensor = self.file.tensors[place.tensor]
        first = self._first_row(place, tensor)
        is_vector = len(self.shape(name)) == 1  # a matrix of one row may be a vector in the file

        def read(rows: range) -> _Floats:
            """float32 (rows, columns); a vector's elements are rows of one column."""
            if is_vector:
                return self._values(tensor, range(1), rows).T
            return self._values(tensor, range(first + rows.start, first + rows.stop), columns)

        values = torch.from_numpy(self._unpermuted(read, rows) if self._is_permuted(name) else read(rows))
        return values.flatten() if is_vector else values

    def quantised_as(self, name: str) -> str | None:
        kind = self.file.tensors[self._places[name].tensor].type
        return kind.name.lower() if GGML_QUANT_SIZES[kind][0] > 1 else None

    def _read_stored(self, name: str, rows: range, columns: range) -> StoredWeight | None:
        place = self._places[name]
        tensor = self.file.tensors[place.tensor]
        form = FORMATS.get(tensor.type.name.lower())
        if form is None:
            return None
        first = self._first_row(place, tensor)
        first_block = columns.start // form.block_values
        last_block = -(-columns.stop // form.block_values)

        def read(rows: range) -> _Bytes:
            stored = self.file.bytes_of(tensor)[first + rows.start : first + rows.stop]
            return stored[:, first_block * form.block_bytes : last_block * form.block_bytes]

        # A row is whole blocks, so reordering rows reorders bytes.
        blocks = self._unpermuted(read, rows) if self._is_permuted(name) else read(rows).copy()
        skipped = columns.start - first_block * form.block_values
        return StoredWeight(form, len(rows), len(columns), torch.from_numpy(blocks), skipped)

    def _is_permuted(self, name: str) -> bool:
        return name.rpartition(".")[2] in _PERMUTED and self._head_dim > 1

    def release_pages(self) -> None:
        self.file.release_pages()

    def _first_row(self, place: Place, tensor: TensorInfo) -> int:
        return place.first_row if place.expert is None else place.expert * tensor.shape[1]

    def _unpermuted(self, read: Callable[[range], np.ndarray[Any, Any]], rows: range) -> np.ndarray[Any, Any]:
        """Undoes the converter's reordering: in each head it stores row j and row d/2 + j side by side.

        Whole heads are read; the rows asked for are cut from them.
        """
        d = self._head_dim
        first_head, last_head = rows.start // d, -(-rows.stop // d)
        values = read(range(first_head * d, last_head * d))
        heads = values.reshape(last_head - first_head, d // 2, 2, values.shape[1]).swapaxes(1, 2)
        start = rows.start - first_head * d
        return np.ascontiguousarray(heads.reshape(values.shape)[start : start + len(rows)])

    def _values(self, tensor: TensorInfo, rows: range, columns: range) -> _Floats:
        """float32 (rows, columns), dequantised a few rows at a time from the blocks the columns lie in."""
        block, block_bytes = GGML_QUANT_SIZES[tensor.type]
        first, last = columns.start // block, -(-columns.stop // block)
        skip = columns.start - first * block
        stored = self.file.bytes_of(tensor)[rows.start : rows.stop, first * block_bytes : last * block_bytes]
        out = np.empty((len(rows), len(columns)), dtype=np.float32)
        step = max(1, _CHUNK_VALUES // max(1, (last - first) * block))
        for at in range(0, len(rows) if columns else 0, step):
            out[at : at + step] = self._dequantised(tensor, stored[at : at + step])[
                :, skip : skip + len(columns)
            ]
        return out

    def _dequantised(self, tensor: TensorInfo, stored: Any) -> Any:
        """uint8 (rows, bytes) -> float32 (rows, values). As one long row: gguf's passes are per 16 rows."""
        try:
            values = dequantize(np.ascontiguousarray(stored).reshape(1, -1), tensor.type)
        except NotImplementedError as error:
            raise ConfigError(
                f"{self.file.file_of(tensor.name)}: tensor {tensor.name!r} is quantised as {tensor.type.name}, "
                "which is not supported; use another quantisation of the model"
            ) from error
        except ValueError as error:
            raise ModelError(
                f"{self.file.file_of(tensor.name)}: tensor {tensor.name!r} cannot be dequantised: {error}"
            ) from error
        return values.reshape(len(stored), -1)
