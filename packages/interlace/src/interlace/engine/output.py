"""Output: the whole result of a request, when it has ended, and the figures of an engine.

Imports nothing of interlace but plain figures: errors carry outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interlace.engine.cache.traffic import TierStats

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """Natural log of a token's probability under the raw model, and its rank (1 is the likeliest)."""

    logprob: float
    rank: int


@dataclass(frozen=True)
class RequestMetrics:
    """Times of one request. Durations are in seconds; rates are None until they can be told."""

    arrival_time: float  # seconds since the epoch
    queue_s: float | None  # arrival to the first pass it took part in
    time_to_first_token_s: float | None  # arrival to the first token
    total_s: float  # arrival to the end
    num_prompt_tokens: int
    num_output_tokens: int
    prefill_tokens_per_second: (
        float | None
    )  # prompt tokens that were computed, from the first pass to the first token
    decode_tokens_per_second: float | None  # tokens after the first, from the first to the end
    num_preemptions: int
    num_cached_tokens: int  # of the prompt, found in the cache and not computed
    num_fetched_tokens: int  # of these, those that came from a tier below local memory
    fetch_s: float  # from asking for them to the arrival of the last layer, over the passes that fetched
    fetch_waited_s: (
        float  # of these, those that the pass stood still for: the rest is hidden behind its computing
    )


@dataclass(frozen=True)
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]  # a stop token that ended the request included; its text is not in `text`
    logprobs: list[dict[int, Logprob]] | None  # one per token
    finish_reason: FinishReason
    stop_reason: str | int | None  # the stop string, or the id out of `stop_token_ids`, that ended it


@dataclass(frozen=True)
class RequestOutput:
    request_id: str
    prompt: str | None  # None when the prompt came as token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    finished: bool = True

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason


@dataclass(frozen=True)
class EngineStats:
    """The engine as it is now. Rates are over the last passes; totals since it was built."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_kept_blocks: int  # of the free ones, those whose contents can still be found
    num_blocks: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    num_steps: int
    num_prompt_tokens: int  # computed, recomputation after preemption included
    num_cached_tokens: int  # of prompts, found and not computed
    num_output_tokens: int
    num_preemptions: int
    num_finished: int
    tiers: tuple[TierStats, ...]  # below the KV cache, from the top
