"""Medians with their spread, and ratios taken pair by pair within a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True)
class Summary:
    """Samples of one quantity. With the few rounds of a benchmark the spread is simply the extremes."""

    median: float
    low: float
    high: float
    num_samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Raises: ValueError for no samples."""
        if not samples:
            raise ValueError("got no samples; expected at least one")
        return cls(median(samples), min(samples), max(samples), len(samples))

    def to_json(self) -> dict[str, float]:
        """The fields as they are."""
        return asdict(self)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """Ratio of each round's two samples: a slow phase of the machine falls on both.

    Raises: ValueError when the two were not sampled in the same rounds.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"got {len(ours)} and {len(theirs)} samples; expected one of each per round")
    return Summary.of([mine / other for mine, other in zip(ours, theirs, strict=True)])
