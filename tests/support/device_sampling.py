"""The device's sampler as a function, like the native one; batches for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenweave.sampling import DeviceSampler, SampledRow, SamplingRow

VOCAB_SIZE = 700
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.2}
EVERYTHING = [  # each feature alone, then all
    {},
    {"temperature": 0.0},
    {"top_k": 9},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"logprobs": 3},
    PENALTIES,
    {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "logprobs": 5, **PENALTIES},
]


def row_of(tokens: list[int], num_prompt: int, seed: int, **values: float) -> SamplingRow:
    return SamplingRow(np.array(tokens, np.int32), num_prompt, seed, **values)  # type: ignore[arg-type]


def logits_of(seed: int, num_rows: int, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy((random.standard_normal((num_rows, vocab_size)) * 3).astype(np.float32))


def rows_of(seed: int = 0) -> list[SamplingRow]:
    """One for each of EVERYTHING."""
    tokens = [1, 5, 5, 9, 5]
    return [row_of(tokens, 2, seed + place, **values) for place, values in enumerate(EVERYTHING)]


def slots_of(sampler: DeviceSampler, rows: Sequence[SamplingRow]) -> list[int | None]:
    """A slot for each row that needs one, with the row's tokens."""
    return [sampler.slots.add(row.tokens, row.num_prompt) if row.has_penalties else None for row in rows]


def device_sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledRow]:
    """Returns what a sampler of its own, on the CPU, finds for `rows`."""
    sampler = DeviceSampler(max(1, logits.shape[-1]), len(rows), len(rows))
    return sampler.sample(logits, rows, slots_of(sampler, rows)).fetch().rows
