"""Target: a figure that the project set itself, beside the one that was reached."""

from __future__ import annotations

from dataclasses import dataclass

from emucxl.bench.harness import Samples


@dataclass(frozen=True)
class Target:
    """A target, and the figure that was reached."""

    name: str
    got: Samples
    wanted: float
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        return self.got.median <= self.wanted if self.at_most else self.got.median >= self.wanted
