"""A GGUF model as one: a single file, or all the parts of one that was split (model-00001-of-00003.gguf, …)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interlace.errors import CorruptFile
from interlace.models.gguf.file import GgufFile, TensorInfo
from interlace.models.gguf.names import names_of_parts


class GgufModel:
    """The metadata and tensors of all parts of a model. Thread safety: read-only once open.

    Raises:
        CorruptFile: a part is missing, is of another model, or is damaged.
        ConfigError: a version or tensor type that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the file, or any one of its parts."""
        self.path = path
        self._parts = _open_parts(path)
        self.fields: Mapping[str, Any] = self._parts[0].fields  # the other parts only say which they are
        self.tensors: dict[str, TensorInfo] = {}
        self._part_of: dict[str, GgufFile] = {}
        for part in self._parts:
            self._add(part)
        self._check_count()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every part, in order."""
        return tuple(part.path for part in self._parts)

    def file_of(self, tensor: str) -> Path:
        """The part that holds a tensor."""
        return self._part_of[tensor].path

    def bytes_of(self, tensor: TensorInfo) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """See `GgufFile.bytes_of`."""
        return self._part_of[tensor.name].bytes_of(tensor)

    def release_pages(self) -> None:
        """See `GgufFile.release_pages`."""
        for part in self._parts:
            part.release_pages()

    def _add(self, part: GgufFile) -> None:
        for name, tensor in part.tensors.items():
            if name in self.tensors:
                raise CorruptFile(
                    f"{part.path}: tensor {name!r} is in {self.file_of(name).name} as well; the parts do not "
                    "belong to one model: fetch them again"
                )
            self.tensors[name], self._part_of[name] = tensor, part

    def _check_count(self) -> None:
        promised = self.fields.get("split.tensors.count")
        if len(self._parts) > 1 and promised not in (None, len(self.tensors)):
            raise CorruptFile(
                f"{self.path}: the {len(self._parts)} parts hold {len(self.tensors)} tensors, the first part "
                f"promises {promised}; fetch the model again"
            )


def _open_parts(path: Path) -> list[GgufFile]:
    first = GgufFile(path)
    count = first.fields.get("split.count", 0)
    if count in (0, 1):
        return [first]
    if not isinstance(count, int):
        raise CorruptFile(f"{path}: split.count is {count!r}, expected the number of parts")
    names = names_of_parts(path.name)
    if len(names) != count:
        raise CorruptFile(
            f"{path} is one of {count} parts of a model, but is not named like one; expected a name such as "
            f"model-00001-of-{count:05d}.gguf, with the other parts beside it"
        )
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        shown = ", ".join(missing[:4]) + (" and others" if len(missing) > 4 else "")
        raise CorruptFile(
            f"{path} is one of {count} parts of a model, of which {len(missing)} are missing in "
            f"{path.parent}: {shown}; fetch them too"
        )
    parts = [first if name == path.name else GgufFile(path.parent / name) for name in names]
    for index, part in enumerate(parts):
        _check_place(part, index, count)
    return parts


def _check_place(part: GgufFile, index: int, count: int) -> None:
    number, of = part.fields.get("split.no"), part.fields.get("split.count")
    if (number, of) != (index, count):
        raise CorruptFile(
            f"{part.path} says that it is part {number!r} (from 0) of {of!r}, expected part {index} of {count}; "
            "it was renamed or belongs to another model: fetch it again"
        )
