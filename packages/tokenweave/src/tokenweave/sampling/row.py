"""SamplingRow and SampledRow: how one row's token is chosen, and which it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


class SamplingRow(NamedTuple):
    """Values are taken as they are: whoever makes one has checked them."""

    tokens: Int32Array  # (num_tokens,): the prompt, then the output
    num_prompt: int
    seed: int  # the seed and the output's index decide the random number
    temperature: float = 1.0  # 0: the likeliest, of equals the first
    top_k: int = 0  # 0 or less: off
    top_p: float = 1.0
    min_p: float = 0.0  # relative to the likeliest
    repetition_penalty: float = 1.0  # over prompt and output
    frequency_penalty: float = 0.0  # over output only, per occurrence
    presence_penalty: float = 0.0  # over output only
    logprobs: int | None = None  # so many of the likeliest are named; None: none, and no rank either

    @property
    def output_index(self) -> int:
        """Of the token that is chosen, among the output."""
        return len(self.tokens) - self.num_prompt

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


class SampledRow(NamedTuple):
    """The token of one row, and what its log-probabilities are made of: log p(t) = logit[t] - largest - log(total)."""

    token: int | None  # None: the largest logit is no finite number
    largest: float  # of the logits; a NaN where there is one
    total: float = 0.0  # with logprobs: the sum of exp(logit - largest)
    rank: int = 0  # with logprobs: of the token among the logits; 1 is the likeliest
    likeliest: tuple[int, ...] = ()  # so many as logprobs asks for; of equals the lower id first
