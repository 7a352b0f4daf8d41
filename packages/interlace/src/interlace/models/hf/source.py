"""Weights from a Hugging Face directory: one safetensors file, or many with an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interlace.errors import ConfigError, CorruptFile, ModelNotFound
from interlace.models.config import ModelConfig
from interlace.models.families import family_of
from interlace.models.gguf.names import is_gguf
from interlace.models.hf.config import read_hf_config
from interlace.models.json_file import read_json, read_optional_json
from interlace.models.leftovers import refuse_unread_tensors
from interlace.models.weight_map import Places, hf_places
from interlace.models.weights import WeightSource, place_weights

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "BF16", "F16", "F64")
_COMPARED_VALUES = 1 << 22  # of two matrices at a time
_OTHER_HEAD = (
    "{directory}: config.json has tie_word_embeddings true, but the files hold {head!r} with other values than the "
    "embedding; they are used as they are, untied. Set tie_word_embeddings to false to say so"
)


class SafetensorsSource(WeightSource):
    """The weights of a directory with config.json and safetensors files, memory-mapped.

    Raises:
        ModelNotFound: the directory has no config.json or no weights.
        ConfigError: the configuration is not one this decoder implements.
        CorruptFile: a file is missing, truncated or damaged.
        ShapeMismatch: a tensor's shape is not what the configuration calls for.
    """

    def __init__(self, directory: Path) -> None:
        config = read_directory_config(directory)
        self.files = tuple(_weight_files(directory))
        self._handles = {file: _open(file) for file in self.files}
        self._file_of: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file, handle in self._handles.items():
            for tensor in handle.keys():  # noqa: SIM118 -- not a dict
                view = handle.get_slice(tensor)
                self._file_of[tensor], shapes[tensor] = file, tuple(view.get_shape())
        places = hf_places(config)
        head = _tensor_of("lm_head", places, shapes)
        if (
            config.tie_word_embeddings
            and head is not None
            and not self._is_embedding(head, _tensor_of("embed", places, shapes), shapes)
        ):
            config = replace(config, tie_word_embeddings=False)
            self.notices += (_OTHER_HEAD.format(directory=directory, head=head),)
        super().__init__(config, self.files)
        self._places = place_weights(config, places, shapes, self._file_of.__getitem__, directory)
        for place in self._places.values():
            self._check_dtype(place.tensor)
        read = {head, *(place.tensor for place in self._places.values())}
        refuse_unread_tensors(shapes, read, self._file_of.__getitem__)

    def _is_embedding(self, head: str, embed: str | None, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a tied model's output head holds what its embedding does. Stops at the first difference."""
        if embed is None or shapes[embed] != shapes[head] or len(shapes[head]) != 2:
            return False
        one, other = (self._handles[self._file_of[tensor]].get_slice(tensor) for tensor in (embed, head))
        num_rows, num_columns = shapes[head]
        step = max(1, _COMPARED_VALUES // max(1, num_columns))
        try:
            is_equal = all(
                _are_equal(one[at : at + step], other[at : at + step]) for at in range(0, num_rows, step)
            )
        except SafetensorError as error:
            raise CorruptFile(f"{self._file_of[head]}: cannot read tensor {head!r}: {error}") from error
        self.release_pages()
        return is_equal

    def _check_dtype(self, tensor: str) -> None:
        file = self._file_of[tensor]
        dtype = self._handles[file].get_slice(tensor).get_dtype()
        if dtype not in _DTYPES:
            raise ConfigError(
                f"{file}: tensor {tensor!r} is stored as {dtype}; supported are {', '.join(_DTYPES)}. "
                "Use the unquantised model or a GGUF file"
            )

    def _read(self, name: str, rows: range, columns: range) -> Tensor:
        place = self._places[name]
        tensor, rows = place.tensor, range(place.first_row + rows.start, place.first_row + rows.stop)
        file = self._file_of[tensor]
        view = self._handles[file].get_slice(tensor)
        is_vector = len(self.shape(name)) == 1
        if not rows or not columns:
            return torch.empty((len(rows),) if is_vector else (len(rows), len(columns)), dtype=torch.float32)
        try:
            part: Tensor = (
                view[rows.start : rows.stop]
                if is_vector
                else view[rows.start : rows.stop, columns.start : columns.stop]
            )
        except SafetensorError as error:
            raise CorruptFile(f"{file}: cannot read tensor {tensor!r}: {error}") from error
        if name.endswith("norm") and (offset := family_of(self.config.family).hf.norm_offset):
            return part.float() + offset
        if part.dtype in (torch.float16, torch.float64):
            return part.float()
        return (
            part.clone() if is_vector else part.contiguous()
        )  # vectors are kept for good, beyond the file's mapping

    def release_pages(self) -> None:
        self._handles = {
            file: _open(file) for file in self.files
        }  # the old mapping goes with the last view of it


def _tensor_of(name: str, places: Places, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    return next((place.tensor for place in places(name) if place.tensor in shapes), None)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.float(), other.float())


def read_directory_config(directory: Path) -> ModelConfig:
    """A Hugging Face directory's ModelConfig. Raises ModelNotFound without one, ConfigError as `read_hf_config`."""
    path = directory / "config.json"
    if not path.is_file():
        gguf = sorted(path.name for path in directory.iterdir() if is_gguf(path))
        hint = f"; it holds {', '.join(gguf[:4])}: name the file itself" if gguf else ""
        raise ModelNotFound(
            f"{directory} has no config.json; expected a Hugging Face model directory or a .gguf file{hint}"
        )
    config, generation = read_json(path), read_optional_json(directory / "generation_config.json")
    try:
        return read_hf_config(config, generation)
    except ConfigError as error:
        raise ConfigError(f"{directory}: {error}") from error


def _weight_files(directory: Path) -> list[Path]:
    """As transformers: one whole file comes first, since an index beside it is what another download left."""
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    if (directory / _INDEX).is_file():
        return _indexed_files(directory)
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise CorruptFile(
            f"{directory} has {len(files)} safetensors files but no {_INDEX} to tell which belong to the "
            "model; fetch the model again"
        )
    others = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
    hint = f" (it has {', '.join(others[:4])})" if others else ""
    raise ModelNotFound(
        f"{directory} has no safetensors weights{hint}; convert the model to safetensors, or name a .gguf file "
        "itself"
    )


def _indexed_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptFile(f"{index} has no weight_map of tensor names to file names; fetch the model again")
    files = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not (directory / name).is_file():
            raise CorruptFile(f"{index} names {name!r}, which is not in {directory}; fetch the model again")
        files.append(directory / name)
    return files


def _open(file: Path) -> Any:
    """A memory-mapped handle; opening it checks the header against the file's length."""
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise CorruptFile(
            f"{file} ({file.stat().st_size} bytes) is truncated or damaged: {error}; fetch the model again"
        ) from error
    except OSError as error:
        raise CorruptFile(f"{file} cannot be read: {error}") from error
