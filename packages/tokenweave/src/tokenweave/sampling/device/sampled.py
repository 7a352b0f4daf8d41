"""The findings of a pass, on the device and back on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenweave.sampling.device.arithmetic import exp_of_negative, masses
from tokenweave.sampling.device.copies import Returning, synchronize
from tokenweave.sampling.device.rules import likeliest_of
from tokenweave.sampling.reference import quanta_of_one
from tokenweave.sampling.row import SampledRow, SamplingRow

# The columns of what was found, (num_rows, columns) int64, some of them float64 by their bits: the token, the largest
# logit; with logprobs also the total, the token's rank, max_logprobs of the likeliest tokens, the token's logit, and
# theirs.
TOKEN, LARGEST, TOTAL, RANK, LIKELIEST = range(5)


class Fetched(NamedTuple):
    """On the host, a record for each row."""

    rows: list[SampledRow]  # as the reference has them
    logits: list[dict[int, float]]  # with logprobs: of the likeliest, and of the token; empty without


class DeviceSampled:
    """The tokens sampled for `rows`, on the device and, once it is fetched, on the host.

    found: what `DeviceSampler.compute` gave, (num_rows, columns) int64; rows beyond `rows` are padding.
    """

    def __init__(self, found: Tensor, rows: Sequence[SamplingRow]) -> None:
        self._rows = rows
        self.tokens = found[:, TOKEN]  # (num_rows,) int64; -1 where the largest logit is not finite
        self._returning = Returning(found[: len(rows)])

    def fetch(self, wait_for: Callable[[torch.cuda.Event], None] = synchronize) -> Fetched:
        """Waits for the device, by `wait_for` the event that says when, and gives what it found."""
        found = self._returning.wait(wait_for)
        each = zip(self._rows, found.tolist(), found.view(torch.float64).tolist(), strict=True)
        records = [_record(row, numbers, floats) for row, numbers, floats in each]
        return Fetched([row for row, _ in records], [logits for _, logits in records])


def _record(row: SamplingRow, numbers: list[int], floats: list[float]) -> tuple[SampledRow, dict[int, float]]:
    token, largest = numbers[TOKEN], floats[LARGEST]
    if token < 0 or row.logprobs is None:
        return SampledRow(None if token < 0 else token, largest), {}
    max_logprobs = (len(numbers) - LIKELIEST) // 2
    likeliest = numbers[LIKELIEST : LIKELIEST + min(row.logprobs, max_logprobs)]
    token_logit, *logits = floats[LIKELIEST + max_logprobs :]
    named = {**dict(zip(likeliest, logits, strict=False)), token: token_logit}
    return SampledRow(token, largest, floats[TOTAL], numbers[RANK], tuple(likeliest)), named


def columns_of(tokens: Tensor, largest: Tensor) -> list[Tensor]:
    """The columns of tokens (num_rows,) int64 and largest (num_rows,) float32."""
    return [tokens[:, None], _bits_of(largest)[:, None]]


def logprob_columns(logits: Tensor, largest: Tensor, tokens: Tensor, max_logprobs: int) -> list[Tensor]:
    """The columns of log-probabilities, of the model's own logits (num_rows, vocab_size)."""
    vocab_size = logits.shape[1]
    mass = masses(exp_of_negative(logits - largest[:, None]), vocab_size).sum(1)
    total = mass.to(torch.float64) * (1 / quanta_of_one(vocab_size))
    chosen = tokens.clamp(min=0)[:, None]
    rank = 1 + (logits > logits.gather(1, chosen)).sum(1)
    likeliest = likeliest_of(logits, max_logprobs)
    values = logits.gather(1, torch.cat([chosen, likeliest], dim=1))
    return [_bits_of(total)[:, None], rank[:, None], likeliest, _bits_of(values)]


def _bits_of(values: Tensor) -> Tensor:
    return values.to(torch.float64).view(torch.int64)
