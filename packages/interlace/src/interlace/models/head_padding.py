"""HeadPadding: attention heads widened with zeros to a size that the kernels compute.

The answer stays what it was: in a score, zeros of a query meet zeros of a key, and what zeros of a value sum to is
multiplied by columns of zeros. What it costs is memory: the KV cache has the wider heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from tokenweave.kernels import LazyStoredWeight, LazyWeight, StoredWeight


@dataclass(frozen=True)
class HeadPadding:
    """How heads are widened. Rotation pairs (j, head_dim / 2 + j), so each half of a head is widened at its end."""

    head_dim: int  # the model's
    width: int  # the kernels'

    @classmethod
    def to_multiple(cls, head_dim: int, alignment: int) -> HeadPadding:
        """Widens to the next multiple of `alignment`, which is even."""
        return cls(head_dim, -(-head_dim // alignment) * alignment)

    @property
    def is_needed(self) -> bool:
        return self.width != self.head_dim

    def half(self, values: Tensor) -> Tensor:
        """(…, head_dim / 2) -> (…, width / 2)"""
        return pad(values, (0, (self.width - self.head_dim) // 2))

    def vector(self, vector: Tensor) -> Tensor:
        """A value for each row of heads: (num_heads * head_dim,) -> (num_heads * width,)"""
        return self.half(vector.view(-1, self.head_dim // 2)).flatten() if self.is_needed else vector

    def columns(self, weight: Tensor) -> Tensor:
        """(n, num_heads * head_dim) -> (n, num_heads * width)"""
        if not self.is_needed:
            return weight
        num_halves = 2 * weight.shape[1] // self.head_dim
        return self.half(weight.reshape(len(weight), num_halves, self.head_dim // 2)).flatten(1)

    def rows(self, weight: Tensor) -> Tensor:
        """(num_heads * head_dim, n) -> (num_heads * width, n)"""
        return self.columns(weight.T).T.contiguous() if self.is_needed else weight

    def lazy_rows(self, weight: LazyWeight) -> LazyWeight:
        """`rows` of a weight that is read as it is packed: whole heads are read."""
        if not self.is_needed:
            return weight

        def read(rows: range) -> Tensor:
            heads, skipped = self._heads(rows)
            return self.rows(weight.rows(heads))[skipped : skipped + len(rows)]

        return LazyWeight(weight.n // self.head_dim * self.width, weight.k, read)

    def lazy_columns(self, weight: LazyWeight) -> LazyWeight:
        """`columns` of a weight that is read as it is packed."""
        width = weight.k // self.head_dim * self.width
        return LazyWeight(weight.n, width, lambda rows: self.columns(weight.rows(rows)))

    def stored_rows(self, weight: LazyStoredWeight) -> LazyStoredWeight:
        """`lazy_rows` of a stored weight: bytes of zero are values of zero."""
        if not self.is_needed:
            return weight

        def read(rows: range) -> StoredWeight:
            heads, skipped = self._heads(rows)
            blocks = self.rows(weight.rows(heads).blocks)[skipped : skipped + len(rows)]
            return StoredWeight(weight.format, len(rows), weight.k, blocks, weight.first_column)

        return LazyStoredWeight(
            weight.format, weight.n // self.head_dim * self.width, weight.k, read, weight.first_column
        )

    def _heads(self, rows: range) -> tuple[range, int]:
        """The rows of the heads that widened `rows` are in, and how many widened ones of these precede them."""
        first, stop = rows.start // self.width, -(-rows.stop // self.width)
        return range(first * self.head_dim, stop * self.head_dim), rows.start - first * self.width

    def norm(self, weight: Tensor) -> Tensor:
        """The weight of a norm over each head, (head_dim,) -> (width,): the mean is taken over more values there."""
        return self.vector(weight * (self.head_dim / self.width) ** 0.5) if self.is_needed else weight

    def eps(self, eps: float) -> float:
        """The term that is added to that mean."""
        return eps * self.head_dim / self.width
