"""Meter: counts tokens and tells how fast they have been going lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

WINDOW = 64  # passes that the rates look back over


class PassCount(NamedTuple):
    end_s: float
    num_prompt: int
    num_output: int


class Meter:
    """Tokens of forward passes: totals since it was made, rates over the last `WINDOW` passes."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0
        self._passes: deque[PassCount] = deque(maxlen=WINDOW)

    def record(self, end_s: float, num_prompt: int, num_output: int) -> None:
        """A pass ended: it computed `num_prompt` tokens of prompts (or again) and generated `num_output`."""
        self.num_steps += 1
        self.num_prompt_tokens += num_prompt
        self.num_output_tokens += num_output
        self._passes.append(PassCount(end_s, num_prompt, num_output))

    @property
    def prefill_tokens_per_second(self) -> float:
        return self._rate(lambda item: item.num_prompt)

    @property
    def decode_tokens_per_second(self) -> float:
        return self._rate(lambda item: item.num_output)

    def _rate(self, count: Callable[[PassCount], int]) -> float:
        """The first pass only starts the clock. Reads a copy, since another thread may ask."""
        passes = list(self._passes)
        if len(passes) < 2:
            return 0.0
        elapsed_s = passes[-1].end_s - passes[0].end_s
        return sum(map(count, passes[1:])) / elapsed_s if elapsed_s > 0 else 0.0
