"""WeightSource: a model's weights by canonical name, read slice by slice from disk.

Thread safety: `load` may be called from several threads at once; a source never changes after it is opened.
Invariants: (1) every weight of `weight_shapes(config)` is in the files with that shape, checked when a source
is opened, from the files' headers alone; (2) `load` reads no more of the files than the slice asked for, plus what
shares a page, a quantisation block or a head with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from interlace.errors import CorruptFile, ModelError, ShapeMismatch
from interlace.models.config import ModelConfig, weight_shapes
from interlace.models.leftovers import listed
from interlace.models.weight_map import Place, Places
from tokenweave.kernels import StoredWeight


class WeightSource(ABC):
    """The weights of one model."""

    config: ModelConfig
    files: tuple[Path, ...]  # the weight files, in name order
    notices: tuple[str, ...] = ()  # what whoever runs the model should be told

    def __init__(self, config: ModelConfig, files: tuple[Path, ...]) -> None:
        self.config, self.files = config, files
        self._shapes = weight_shapes(config)

    def has(self, name: str) -> bool:
        """Whether the model has a weight of this canonical name; a tied model has no "lm_head"."""
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole weight's shape. Raises ModelError for a name the model does not have."""
        if name not in self._shapes:
            raise ModelError(f"this {self.config.family} model has no weight called {name!r}")
        return self._shapes[name]

    def load(self, name: str, rows: range | None = None, columns: range | None = None) -> Tensor:
        """The rows and columns asked for (default: all) of a weight.

        Gives float32 or bfloat16: bfloat16 as stored, anything else widened or dequantised to float32;
        contiguous, shape (rows, columns), or (rows,) for a vector. A matrix may be a view of the mapped file, whose
        pages are then read when it is: do not write to it.

        Raises:
            ModelError: no such weight, or a range outside it.
            CorruptFile: the file can no longer be read as its header promised.
        """
        shape = self.shape(name)
        row_range = _checked(name, "rows", rows, shape[0])
        if len(shape) == 1:
            if columns is not None:
                raise ModelError(
                    f"{name!r} is a vector of shape {shape}; columns {columns} cannot be taken of it"
                )
            return self._read(name, row_range, range(1))
        return self._read(name, row_range, _checked(name, "columns", columns, shape[1]))

    def stored(
        self, name: str, rows: range | None = None, columns: range | None = None
    ) -> StoredWeight | None:
        """`load` of a matrix as the blocks of its file, copied, where it has blocks that kernels multiply.

        None: `load` it. Raises as `load`.
        """
        shape = self.shape(name)
        row_range = _checked(name, "rows", rows, shape[0])
        column_range = _checked(name, "columns", columns, shape[1] if len(shape) > 1 else 1)
        if len(shape) == 1 or not row_range or not column_range:
            return None
        return self._read_stored(name, row_range, column_range)

    def quantised_as(self, name: str) -> str | None:
        """The format of a quantised weight, "q5_0"; None: its numbers are whole floats."""
        return None

    def _read_stored(self, name: str, rows: range, columns: range) -> StoredWeight | None:
        """`stored` of a matrix, with both ranges given, within bounds and not empty."""
        return None

    @abstractmethod
    def release_pages(self) -> None:
        """Gives mapped pages that were read back to the system, for when loading is done. The source stays usable."""

    @abstractmethod
    def _read(self, name: str, rows: range, columns: range) -> Tensor:
        """`load` with both ranges given and within bounds; the columns of a vector are range(1)."""


def _checked(name: str, axis: str, wanted: range | None, size: int) -> range:
    if wanted is None:
        return range(size)
    if wanted.step != 1 or not 0 <= wanted.start <= wanted.stop <= size:
        raise ModelError(
            f"cannot take {axis} {wanted} of {name!r}, which has {size}; expected a range within them"
        )
    return wanted


def place_weights(
    config: ModelConfig,
    places: Places,
    shapes: Mapping[str, tuple[int, ...]],
    file_of: Callable[[str], Path],
    missing_from: Path,
) -> dict[str, Place]:
    """Finds every weight the configuration calls for among a file's tensors, and checks its shape.

    `shapes` are the files' tensors, `file_of` names the file that holds one.

    Raises:
        CorruptFile: a weight is missing.
        ShapeMismatch: a weight has another shape.
    """
    found = {}
    for name, expected in weight_shapes(config).items():
        candidates = places(name)
        place = next((p for p in candidates if p.tensor in shapes), None)
        if place is None:
            raise CorruptFile(
                f"{missing_from}: tensor {candidates[0].tensor!r} ({name}) is missing; the configuration calls for it. "
                f"{_others(config, places, shapes)}Fetch the model again, or correct its configuration"
            )
        _check_shape(place, shapes[place.tensor], expected, config, file_of(place.tensor))
        found[name] = place
    return found


def _others(config: ModelConfig, places: Places, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Names the tensors that the files hold in place of the missing ones: mostly those of another layout."""
    wanted = {place.tensor for name in weight_shapes(config) for place in places(name)}
    others = sorted(set(shapes) - wanted)
    return f"The files hold {listed(others, ', ')}, which it does not call for. " if others else ""


def _check_shape(
    place: Place, got: tuple[int, ...], expected: tuple[int, ...], config: ModelConfig, file: Path
) -> None:
    if place.expert is not None:
        expected = (config.num_experts, *expected)
    if place.num_rows is not None:
        expected = (place.num_rows, *expected[1:])
    if got not in (expected, expected[1:] if expected[0] == 1 else expected):
        raise ShapeMismatch(
            f"{file}: tensor {place.tensor!r} has shape {got}, expected {expected} by the configuration; "
            "the weights and the configuration belong to different models"
        )
