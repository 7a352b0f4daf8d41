"""Curves: times against token counts, and what else a wave table interpolates."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenweave.errors import TuneError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Seconds at some token counts, ascending; straight lines between them, and on from the last in proportion."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in pairwise(self.tokens))
        if not self.tokens or len(self.tokens) != len(self.seconds) or self.tokens[0] < 1 or not ascending:
            raise TuneError(
                f"got a curve at {self.tokens}; expected ascending token counts and a time for each"
            )
        if not all(0 <= value < float("inf") for value in self.seconds):
            raise TuneError(f"got times {self.seconds}; expected finite numbers of seconds from 0 on")

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Curve:
        """Raises TuneError, KeyError or TypeError unless `found` is what `dataclasses.asdict` gives."""
        return cls(tuple(found["tokens"]), tuple(found["seconds"]))

    def times(self, factor: float) -> Curve:
        """The curve that takes `factor` times as long."""
        return Curve(self.tokens, tuple(factor * seconds for seconds in self.seconds))

    def __call__(self, num_tokens: int) -> float:
        """Exact at the measured counts; 0 for no tokens."""
        tokens, seconds = self.tokens, self.seconds
        if num_tokens <= 0:
            return 0.0
        after = bisect_left(tokens, num_tokens)
        if after == len(tokens):
            return seconds[-1] * num_tokens / tokens[-1]
        if tokens[after] == num_tokens or after == 0:
            return seconds[after]
        share = (num_tokens - tokens[after - 1]) / (tokens[after] - tokens[after - 1])
        return seconds[after - 1] + share * (seconds[after] - seconds[after - 1])


@dataclass(frozen=True)
class AttentionTimes:
    """Attention over cached keys: for so many new tokens of a sequence, a time plus a time for each pair.

    A pair is a new token and a key that it sees.
    """

    queries: tuple[int, ...]
    floor_s: tuple[float, ...]
    pair_s: tuple[float, ...]

    def __post_init__(self) -> None:
        Curve(self.queries, self.floor_s)
        Curve(self.queries, self.pair_s)

    @classmethod
    def fit(cls, samples: Iterable[tuple[int, tuple[float, float], tuple[float, float]]]) -> AttentionTimes:
        """From (new tokens, (pairs, seconds), (more pairs, seconds)): the line through both points of each."""
        lines = [(queries, *_line(few, many)) for queries, few, many in sorted(samples)]
        return cls(*(tuple(column) for column in zip(*lines, strict=True)))

    def times(self, factor: float) -> AttentionTimes:
        """Those that take `factor` times as long."""
        return AttentionTimes(
            self.queries,
            tuple(factor * seconds for seconds in self.floor_s),
            tuple(factor * seconds for seconds in self.pair_s),
        )

    def __call__(self, num_new: Floats, pairs: Floats) -> float:
        """The time of a batch of sequences with `num_new` new tokens and `pairs` pairs each, both (num_seqs,)."""
        floor_s = np.interp(num_new, self.queries, self.floor_s)
        pair_s = np.interp(num_new, self.queries, self.pair_s)
        return float((floor_s + pair_s * pairs).sum())


@dataclass(frozen=True)
class Pace:
    """The time of a whole pass over that of its stages alone, at some token counts; lines between, level outside.

    Stages are timed alone and at their best. In a pass they follow one another for long enough to slow the processor's
    clock, or to meet what the other ranks do to shared caches, and how much differs between processors.
    """

    tokens: tuple[int, ...] = (1,)
    factors: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        Curve(self.tokens, self.factors)
        if not all(factor > 0 for factor in self.factors):
            raise TuneError(f"got factors {self.factors}; expected positive ones")

    def __call__(self, num_tokens: int) -> float:
        return float(np.interp(num_tokens, self.tokens, self.factors))


LEVEL = Pace()  # a pass takes what its stages take


def _line(few: tuple[float, float], many: tuple[float, float]) -> tuple[float, float]:
    """Floor and slope, neither negative: where noise would have it so, the other alone passes through a point."""
    if many[1] <= few[1] or many[0] <= few[0]:  # the latter with a window of one key
        return min(few[1], many[1]), 0.0  # noise only adds: the smaller time is the better
    slope = (many[1] - few[1]) / (many[0] - few[0])
    floor = few[1] - slope * few[0]
    return (floor, slope) if floor >= 0 else (0.0, many[1] / many[0])
