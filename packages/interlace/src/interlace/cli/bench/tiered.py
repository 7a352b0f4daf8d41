"""TieredEngine: an engine whose local memory holds one prompt, so that the asker says what is found, and where.

Of two texts in turns, each has displaced the other: a prompt that begins with the one asked before the last is found in
the tier below, in all its blocks. One that begins with the last is found in local memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from interlace.cli.bench.workload import PrefixShapes, whole_blocks
from interlace.engine.config import EngineConfig
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import BenchError

if TYPE_CHECKING:
    from interlace.cache.kv_tier import KvTierSpec
    from interlace.engine.output import Logprob, RequestOutput
    from tokenweave.trace import Trace
    from tokenweave.trace.recording import Pass

NUM_TIMED = 2  # tokens of an answer that is timed: the second fills the last block of local memory
NUM_CHECKED = 8  # tokens of an answer that is compared
NUM_LOGPROBS = 2
TEXTS = (0, 1)  # those in turns
SETTLE_S, SETTLE_GBPS = 0.02, 0.5  # what goes down behind an answer is given so long; no memory is slower


@dataclass(frozen=True)
class Answer:
    """A request that has ended: its answer and its figures. Bytes and times of its fetch are of rank 0."""

    first_s: float
    tokens: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    num_cached: int = 0  # tokens of the prompt that were found, wherever
    num_fetched: int = 0  # of these, tokens that a tier had
    fetched_bytes: int = 0
    pass_s: float = 0.0  # of the passes over the prompt, from the first step to the last
    fetch_s: float = 0.0  # from asking for the first layer to the arrival of the last
    waited_s: float = 0.0  # of it, while the pass stood still

    def check_same(self, other: Answer, what: str) -> None:
        """Raises BenchError unless both have the same tokens, and logprobs of the same bits."""
        if (self.tokens, self.logprobs) != (other.tokens, other.logprobs):
            is_of_bits = self.tokens == other.tokens
            raise BenchError(
                f"{what}: got {'other bits of the logprobs of ' if is_of_bits else ''}the tokens {self.tokens}; "
                f"expected those of the prompt computed anew, {other.tokens}"
            )


def tiered_config(
    model: str, shapes: PrefixShapes, tiers: Iterable[str] = (), **options: Any
) -> EngineConfig:
    """An engine for one prompt of `shapes` at a time, whose local memory has no block more than that takes."""
    room = whole_blocks(shapes.num_tokens + NUM_CHECKED)
    num_blocks = whole_blocks(shapes.num_tokens + NUM_CHECKED - 1) // whole_blocks(1)
    return EngineConfig(model, max_model_len=room, num_kv_blocks=num_blocks, kv_tiers=[*tiers], **options)


def room_text(model: str, shapes: PrefixShapes, num_texts: int) -> str:
    """The size of a tier, as a person writes it, that has room for so many prompts in float32."""
    from interlace.models.sources import load_model

    config = load_model(model).config
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
    return f"{-(-num_texts * whole_blocks(shapes.num_tokens + NUM_CHECKED) * token_bytes // 1000)}KB"


class TieredEngine:
    """One engine, asked one prompt after the other; it is given time after each to write down what it leaves."""

    def __init__(self, config: EngineConfig, shapes: PrefixShapes) -> None:
        """Starts the ranks. `config` is one of `tiered_config`, or another whose prompts are asked for one by one."""
        from interlace.engine.engine import Engine
        from interlace.engine.ranks.launch import start

        self.config, self.shapes = config, shapes
        self.ranks = start(config)
        self.engine = Engine(self.ranks, config)
        self._ends, self._new_texts = count(), count(len(TEXTS))
        self._turn = 0
        self._written_bytes = [0] * len(config.tier_specs)

    @property
    def notices(self) -> list[str]:
        """The engine's words on its tiers: such as that one has this machine's bandwidth, and not the modelled one."""
        return [notice for notice in self.ranks.runner.notices if "tier" in notice]

    @property
    def last_text(self) -> int:
        """The one of the two texts that was asked for last."""
        return TEXTS[self._turn % len(TEXTS)]

    def prepare(self) -> None:
        """Has the two texts computed, and written down."""
        for text in TEXTS:
            self.ask(text)
        self._turn = TEXTS[-1]

    def hit(self, **how: Any) -> Answer:
        """A prompt whose beginning a tier has, and local memory does not."""
        self._turn += 1
        return self.ask(self.last_text, **how)

    def local_hit(self, **how: Any) -> Answer:
        """A prompt that begins as the one before it did."""
        return self.ask(self.last_text, **how)

    def computed(self) -> Answer:
        """A prompt that begins as no other did."""
        return self.ask(next(self._new_texts))

    def ask(
        self, text: int, end: int | None = None, max_tokens: int = NUM_TIMED, salt: str | None = None
    ) -> Answer:
        """A prompt that begins with `text` and goes on as none before it, or with `end`. With a `salt` of its own it
        is computed anew. Only answers of more than NUM_TIMED tokens have logprobs.

        Raises:
            RequestFailed: it failed.
        """
        prompt = self.shapes.prompt(
            text, next(self._ends) if end is None else end, self.ranks.model_config.vocab_size
        )
        logprobs = NUM_LOGPROBS if max_tokens > NUM_TIMED else None
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs, cache_salt=salt
        )
        before = self._fetched_bytes()
        self.ranks.start_trace()
        output = self._run(prompt, params)
        trace = self.ranks.end_trace()
        answer = _answer(output, trace, self._fetched_bytes() - before)
        self.settle()
        return answer

    def check_hit(self, end: int) -> Answer:
        """Compares a hit in a tier, whose prompt ends with `end`, with the same prompt computed anew.

        Raises:
            BenchError: they differ.
        """
        answer = self.hit(end=end, max_tokens=NUM_CHECKED)
        anew = self.ask(self.last_text, end, NUM_CHECKED, salt=f"anew {end}")
        answer.check_same(anew, f"{answer.num_fetched} tokens fetched, {answer.num_cached} found")
        return answer

    def settle(self) -> None:
        """Waits until what was told to go down has had the time to."""
        written = [tier.written_bytes for tier in self.engine.stats().tiers]
        seconds = [
            (now - before) / (1e9 * _write_gbps(spec))
            for spec, now, before in zip(self.config.tier_specs, written, self._written_bytes, strict=True)
        ]
        self._written_bytes = written
        if seconds:
            time.sleep(SETTLE_S + 1.1 * sum(seconds))

    def close(self) -> None:
        self.ranks.close()

    def _run(self, prompt: list[int], params: SamplingParams) -> RequestOutput:
        self.engine.add_request("bench", prompt, params)
        while True:
            for chunk in self.engine.step():
                if chunk.error is not None:
                    raise chunk.error
                if chunk.output is not None:
                    return chunk.output

    def _fetched_bytes(self) -> int:
        return sum(tier.fetched_bytes for tier in self.engine.stats().tiers)


def _write_gbps(spec: KvTierSpec) -> float:
    """A bandwidth that the tier has for sure."""
    modelled = 0.0 if spec.timing is None else spec.timing.write_bandwidth_gbps
    return modelled or SETTLE_GBPS


def _answer(output: RequestOutput, trace: Trace, fetched_bytes: int) -> Answer:
    """The passes over the prompt are those of more than one token."""
    metrics = output.metrics
    return Answer(
        first_s=metrics.time_to_first_token_s or 0.0,
        tokens=output.token_ids,
        logprobs=output.outputs[0].logprobs,
        num_cached=metrics.num_cached_tokens,
        num_fetched=metrics.num_fetched_tokens,
        fetched_bytes=fetched_bytes,
        pass_s=sum(_length_s(done) for done in trace.recordings[0].passes if done.plan.num_tokens > 1),
        fetch_s=metrics.fetch_s,
        waited_s=metrics.fetch_waited_s,
    )


def _length_s(done: Pass) -> float:
    spans = list(done.spans())
    return max(span.end_s for span in spans) - min(span.start_s for span in spans)
