"""Sampling: from a pass's logits to one token per sequence.

Invariant: a sequence's token is a pure function of its logits, its tokens, its parameters, its seed and its
output index. `tokenweave.sampling` has the arithmetic: natively over a whole batch, or as the reference, with the
same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from interlace.engine.output import Logprob
from interlace.engine.sampling_params import SamplingParams
from interlace.engine.sequence import Sequence
from interlace.errors import RequestFailed
from tokenweave.native import ThreadPool
from tokenweave.sampling import SampledRow, SamplingRow, native_sample, reference_sample

INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class SampledToken:
    token_id: int
    logprobs: dict[int, Logprob] | None  # the likeliest first, then the chosen one if it is not among them


class Sampled(Protocol):
    """The tokens of a batch that has been sampled, or is being sampled on a device."""

    @property
    def tokens(self) -> Tensor | None:
        """(num_rows,) int64 on the device, for the next pass to read; None where the host knows them."""

    def fetch(self) -> list[SampledToken | Exception]:
        """The token of each row, for which the host waits.

        A row that no token can be taken from gives the error instead, and changes nothing for the others.
        """


class Sampler(Protocol):
    """Samples the batches of one engine, which sees each sequence from its first token to its end."""

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> Sampled:
        """The next token of each of `sequences`, from its row of `logits` (num_logits, vocab_size) float32."""

    def forget(self, sequence: Sequence) -> None:
        """Lets go of what is kept of a sequence that has ended."""


@dataclass(frozen=True)
class SampledOnHost:
    """A batch that has been sampled here."""

    found: list[SampledToken | Exception]
    tokens: None = None

    def fetch(self) -> list[SampledToken | Exception]:
        return self.found


class HostSampler:
    """Samples logits that are on the CPU: natively, on the workers of `pool`, or without one by the reference."""

    def __init__(self, pool: ThreadPool | None = None) -> None:
        self._pool = pool

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> SampledOnHost:
        rows = [row_of(sequence) for sequence in sequences]
        pool = self._pool
        sampled = reference_sample(logits, rows) if pool is None else native_sample(pool, logits, rows)
        tokens = [
            sampled_token(found, lambda tokens, row=row: logits[row, tokens].tolist(), sequence)  # type: ignore[misc]
            for row, (found, sequence) in enumerate(zip(sampled, sequences, strict=True))
        ]
        return SampledOnHost(tokens)

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept."""


def row_of(sequence: Sequence) -> SamplingRow:
    """How the next token of `sequence` is chosen."""
    params: SamplingParams = sequence.params
    return SamplingRow(
        tokens=sequence.tokens[: sequence.num_tokens + sequence.num_pending],
        num_prompt=sequence.num_prompt,
        seed=sequence.seed,
        temperature=0.0 if params.is_greedy else params.temperature,
        top_k=min(params.top_k, INT64_MAX),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        logprobs=params.logprobs,
    )


def sampled_token(
    found: SampledRow, logits_of: Callable[[list[int]], list[float]], sequence: Sequence
) -> SampledToken | Exception:
    """The token that was `found` for `sequence`, or why there is none. `logits_of` gives the logits of some tokens."""
    if found.token is None:
        return RequestFailed(
            f"the model's largest logit after {sequence.num_tokens} tokens is {found.largest}: expected a finite "
            f"number; its weights are damaged, or overflow on this text in this dtype (try dtype='float32')"
        )
    if sequence.params.logprobs is None:
        return SampledToken(found.token, None)
    log_total = found.largest + math.log(found.total)
    ranks = {token: rank for rank, token in enumerate(found.likeliest, start=1)}
    ranks.setdefault(found.token, found.rank)
    logprobs = {
        token: Logprob(value - log_total, rank)
        for (token, rank), value in zip(ranks.items(), logits_of(list(ranks)), strict=True)
    }
    return SampledToken(found.token, logprobs)
