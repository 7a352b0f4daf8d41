"""MatrixReader: the matrices of a model, as blocks that kernels multiply or dense, as the engine is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from interlace.models.weights import WeightSource
from tokenweave.kernels import FORMATS, StoredWeight, quantise

# What an engine's `quantize` makes of dense matrices. The error of q4_1 is 9 % below that of q4_0 for 11 % more bytes.
MADE = {"int8": FORMATS["q8_0"], "int4": FORMATS["q4_0"]}


class MatrixReader:
    """Reads stored weights out of `source`, and remembers why others are dense.

    `quantize` "none": all are dense. "stored": those whose file has blocks that kernels multiply stay blocks.
    "int8", "int4": the others are made such, q8_0 and q4_0, as well. The values of a block are rounded together, so
    a rank's share of the columns is cut out of whole blocks: the values do not depend on the number of ranks.
    """

    def __init__(self, source: WeightSource, quantize: str) -> None:
        self.source = source
        self._is_dense, self._made = quantize == "none", MADE.get(quantize)
        self._dense: Counter[str] = Counter()

    def stack(self, rows: Mapping[str, range]) -> list[StoredWeight] | None:
        """Rows of several matrices that are multiplied as one. None: they are to be dense, all of them."""
        found = [self._read(name, own, None) for name, own in rows.items() if own]
        stored = [weight for weight in found if weight is not None]
        if len(stored) == len(found):
            return stored or None
        if stored:
            self._note(len(stored), "are joined with such")
        return None

    def columns(self, name: str, columns: range, is_widened: bool) -> StoredWeight | None:
        """Columns of a matrix; None: they are to be dense, as where they are to be widened."""
        if not is_widened:
            return self._read(name, None, columns)
        if not self._is_dense and (self._made or self.source.quantised_as(name)):
            self._note(1, "have columns for heads that are widened")
        return None

    @property
    def notices(self) -> tuple[str, ...]:
        """The matrices that are dense though blocks were asked for, and why."""
        return tuple(
            f"{count} {'matrix is' if count == 1 else 'matrices are'} held as dense floats: they {reason}"
            for reason, count in self._dense.items()
        )

    def _read(self, name: str, rows: range | None, columns: range | None) -> StoredWeight | None:
        if self._is_dense or (columns is not None and not columns):
            return None
        stored = self.source.stored(name, rows, columns)
        if stored is not None:
            return stored
        if self._made is not None:
            return self._quantised(name, rows, columns)
        if (form := self.source.quantised_as(name)) is not None:
            self._note(1, f"are stored as {form}, which the kernels do not multiply")
        return None

    def _quantised(self, name: str, rows: range | None, columns: range | None) -> StoredWeight | None:
        assert self._made is not None
        (_, width), block = self.source.shape(name), self._made.block_values
        if width % block:
            self._note(1, f"have rows of {width} values, no multiple of the {block} of a block")
            return None
        if columns is None:
            return quantise(self.source.load(name, rows), self._made)
        first, stop = columns.start // block * block, -(-columns.stop // block) * block
        whole = quantise(self.source.load(name, rows, range(first, stop)), self._made)
        return whole.columns(range(columns.start - first, columns.stop - first))

    def _note(self, count: int, reason: str) -> None:
        self._dense[reason] += count
