"""Geometry of a batch: which rows are whose, how far each sequence sees, and which rows' logits are wanted.

Whoever cuts a batch in parts, or narrows it in the last layer, reads the outcome here: the tensors of a forward pass,
the prices of its steps, and the tables that describe them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BatchGeometry:
    """The rows of a batch, or of a part of one.

    Sequence `s` owns the rows `query_start[s]:query_start[s + 1]`, the last of its `seq_lens[s]` tokens.
    """

    query_start: Ints  # (num_seqs + 1,)
    seq_lens: Ints  # (num_seqs,)
    logit_rows: Ints  # (num_logits,) ascending
    origin: npt.NDArray[np.intp] | None = (
        None  # (num_seqs,) sequences of the batch that it was cut from; None: all
    )

    @classmethod
    def prefill(cls, num_tokens: int) -> BatchGeometry:
        """One sequence from position 0, with the logits of its last token."""
        ends = np.array([0, num_tokens], dtype=np.int32)
        return cls(ends, ends[1:], ends[1:] - 1)

    @property
    def num_tokens(self) -> int:
        return int(self.query_start[-1])

    @cached_property
    def num_new(self) -> Floats:
        """(num_seqs,)  rows of each sequence."""
        return np.diff(self.query_start).astype(np.float64)

    def part(self, rows: range) -> BatchGeometry:
        """These rows alone, counted from the first. A sequence that goes on behind them has fewer keys there."""
        if rows == range(self.num_tokens):
            return self
        starts, ends = self.query_start[:-1], self.query_start[1:]
        inside = np.flatnonzero((ends > rows.start) & (starts < rows.stop))
        first, last = np.maximum(starts[inside], rows.start), np.minimum(ends[inside], rows.stop)
        wanted = (self.logit_rows >= rows.start) & (self.logit_rows < rows.stop)
        return BatchGeometry(
            np.concatenate([first, last[-1:]]) - np.int32(rows.start),
            self.seq_lens[inside] - (ends[inside] - last),
            self.logit_rows[wanted] - np.int32(rows.start),
            inside,
        )

    @cached_property
    def ending(self) -> BatchGeometry:
        """The rows that are left in the last layer, behind its keys: each wanted row as a sequence of its own, where
        these are few (`narrows`); otherwise all."""
        rows = self.logit_rows
        if not narrows(self.num_tokens, len(rows)):
            return self
        ends = self.query_start[1:]
        owner = np.searchsorted(ends, rows, side="right")
        count = np.arange(len(rows) + 1, dtype=np.int32)
        return BatchGeometry(count, self.seq_lens[owner] - (ends[owner] - 1 - rows), count[:-1], owner)

    def pairs_seen(self, window: int) -> Floats:
        """(num_seqs,)  pairs of a new token and a key that it sees, of at most `window` keys (0: all)."""
        return pairs_seen(self.num_new, self.seq_lens.astype(np.float64), window)


def narrows(num_tokens: int, num_wanted: int) -> bool:
    """Whether a part of `num_tokens` rows, of which `num_wanted` have their logits wanted, ends with those alone.

    Behind the last layer's keys and values nobody sees the other rows: its attention, its MLP and the last two
    reductions then run on the wanted ones only, or not at all. That costs an exchange of their residual.
    """
    return 2 * num_wanted <= num_tokens


def parts_of(num_tokens: int, split: int | None) -> tuple[range, ...]:
    """The token rows of each part of a batch that is cut before row `split`, or not at all."""
    if split is None:
        return (range(num_tokens),)
    return (range(split), range(split, num_tokens))


def pairs_seen(num_new: Floats, num_keys: Floats, window: int = 0) -> Floats:
    """Keys seen, summed over the `num_new` last of `num_keys` tokens, of which each sees at most `window` (0: all)."""
    whole: Floats = num_new * num_keys - num_new * (num_new - 1) / 2
    if not window:
        return whole
    # The i-th token from the end sees num_keys - i keys: what is above the window is a triangle cut at both ends.
    above = np.maximum(num_keys - window, 0)
    below = np.maximum(num_keys - num_new - window, 0)
    unseen: Floats = (above * (above + 1) - below * (below + 1)) / 2
    return whole - unseen
