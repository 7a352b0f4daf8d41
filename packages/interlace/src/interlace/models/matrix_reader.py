"""MatrixReader: the matrices of a model, as blocks that kernels multiply or dense, as the engine is told.

Matrices are read as they are packed, some rows at a time, and the pages of the files that were read for it are given
back soon after. So loading needs little memory beside what it fills.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from torch import Tensor

from interlace.models.config import weight_shapes
from interlace.models.weights import WeightSource
from tokenweave.kernels import FORMATS, LazyStoredWeight, LazyWeight, QuantFormat, StoredWeight, quantise

# What an engine's `quantize` makes of dense matrices. The error of q4_1 is 9 % below that of q4_0 for 11 % more bytes.
MADE = {"int8": FORMATS["q8_0"], "int4": FORMATS["q4_0"]}
_NO_BLOCKS = (
    "quantize is 'stored', but the model's files have no weights in blocks: all are held as dense floats. int8 or int4 "
    "makes blocks of them when they are loaded"
)
_LEAST_RELEASED_BYTES = 4 << 20  # giving pages back costs some system calls
_LEAST_MAPPED_BYTES = 512 << 10  # around a vector: the system maps what is near a page that is read


class MatrixReader:
    """Reads stored weights out of `source`, and remembers why others are dense.

    `quantize` "none": all are dense. "stored": those whose file has blocks that kernels multiply stay blocks.
    "fp8": likewise, and whoever packs the others rounds them to FP8. "int8", "int4": the others are made such blocks,
    q8_0 and q4_0, as well. The values of a block are rounded together, so
    a rank's share of the columns is cut out of whole blocks: the values do not depend on the number of ranks.
    """

    def __init__(self, source: WeightSource, quantize: str) -> None:
        self.source = source
        self._is_dense, self._made = quantize == "none", MADE.get(quantize)
        self._wants_blocks = quantize not in ("none", "fp8")
        self._dense: Counter[str] = Counter()
        self._has_blocks = False
        self._unreleased_bytes = 0
        self._most_unreleased_bytes = max(_LEAST_RELEASED_BYTES, _layer_values(source) // 2)

    def dense(self, name: str, rows: range | None = None, columns: range | None = None) -> LazyWeight:
        """Rows or columns of a matrix, as the floats that the source gives."""
        rows, k = self._extent(name, rows, columns)

        def read(part: range) -> Tensor:
            found = self.source.load(name, _within(rows, part), columns)
            self._count(found.nbytes)
            return found

        return LazyWeight(len(rows), k, read)

    def vector(self, name: str) -> Tensor:
        """A vector, as the source gives it."""
        found = self.source.load(name)
        self._count(max(found.nbytes, _LEAST_MAPPED_BYTES))
        return found

    def stack(self, rows: Mapping[str, range]) -> list[LazyStoredWeight] | None:
        """Rows of several matrices that are multiplied as one. None: they are to be dense, all of them."""
        found = [self._read(name, own, None) for name, own in rows.items() if own]
        stored = [weight for weight in found if weight is not None]
        if len(stored) == len(found):
            return stored or None
        if stored:
            self._note(len(stored), "are joined with such")
        return None

    def columns(self, name: str, columns: range, is_widened: bool) -> LazyStoredWeight | None:
        """Columns of a matrix; None: they are to be dense, as where they are to be widened."""
        if not is_widened:
            return self._read(name, None, columns)
        if not self._is_dense and (self._made or self.source.quantised_as(name)):
            self._note(1, "have columns for heads that are widened")
        return None

    @property
    def notices(self) -> tuple[str, ...]:
        """The matrices that are dense though blocks were asked for, and why."""
        if self._wants_blocks and not (self._has_blocks or self._dense):
            return (_NO_BLOCKS,)
        return tuple(
            f"{count} {'matrix is' if count == 1 else 'matrices are'} held as dense floats: they {reason}"
            for reason, count in self._dense.items()
        )

    def _read(self, name: str, rows: range | None, columns: range | None) -> LazyStoredWeight | None:
        if self._is_dense or (columns is not None and not columns):
            return None
        stored_as = self.source.quantised_as(name)
        if (form := FORMATS.get(stored_as or "")) is not None:
            return self._stored(name, rows, columns, form)
        if self._made is not None:
            return self._quantised(name, rows, columns, self._made)
        if stored_as is not None:
            self._note(1, f"are stored as {stored_as}, which the kernels do not multiply")
        return None

    def _stored(
        self, name: str, rows: range | None, columns: range | None, form: QuantFormat
    ) -> LazyStoredWeight:
        """The blocks of the source."""
        rows, k = self._extent(name, rows, columns)
        self._has_blocks = True

        def read(part: range) -> StoredWeight:
            found = self.source.stored(name, _within(rows, part), columns)
            assert found is not None
            self._count(found.size_bytes)
            return found

        return LazyStoredWeight(form, len(rows), k, read, columns.start % form.block_values if columns else 0)

    def _quantised(
        self, name: str, rows: range | None, columns: range | None, form: QuantFormat
    ) -> LazyStoredWeight | None:
        """Blocks made of what is dense, whole ones whatever the columns."""
        (_, width), block = self.source.shape(name), form.block_values
        if width % block:
            self._note(1, f"have rows of {width} values, no multiple of the {block} of a block")
            return None
        self._has_blocks = True
        columns = columns or range(width)
        first, stop = columns.start // block * block, -(-columns.stop // block) * block
        dense = self.dense(name, rows, range(first, stop))

        def read(part: range) -> StoredWeight:
            whole = quantise(dense.rows(part), form)
            return whole.columns(range(columns.start - first, columns.stop - first))

        return LazyStoredWeight(form, dense.n, len(columns), read, columns.start - first)

    def _extent(self, name: str, rows: range | None, columns: range | None) -> tuple[range, int]:
        """The rows asked for, and the number of columns."""
        num_rows, width = self.source.shape(name)
        return range(num_rows) if rows is None else rows, width if columns is None else len(columns)

    def _count(self, size_bytes: int) -> None:
        """Gives pages back after a part of a layer."""
        self._unreleased_bytes += size_bytes
        if self._unreleased_bytes >= self._most_unreleased_bytes:
            self.source.release_pages()
            self._unreleased_bytes = 0

    def _note(self, count: int, reason: str) -> None:
        if self._wants_blocks:
            self._dense[reason] += count


def _within(rows: range, part: range) -> range:
    """Rows of the whole matrix: `part` counts from the first of `rows`."""
    return range(rows.start + part.start, rows.start + part.stop)


def _layer_values(source: WeightSource) -> int:
    """The values of a layer on average."""
    sizes = (
        prod(shape) for name, shape in weight_shapes(source.config).items() if name.startswith("layers.")
    )
    return sum(sizes) // source.config.num_layers
