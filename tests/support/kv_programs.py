"""Programs of requests over few texts, for an engine on real ranks with tiers, and what each request gives alone.

A `Stage` has the ranks of one engine, and those of another that keeps nothing, runs step by step and computes one
request at a time. Each program runs on an engine of its own over these ranks, with limits of its own: to load a model
takes longer than many programs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest

from interlace import LLM, SamplingParams
from interlace.engine.cache.fetching import Answer, Question, fetch_all
from interlace.engine.cache.tier_health import TierHealth
from interlace.engine.cache.tiers import Tiers
from interlace.engine.chunk import StreamChunk
from interlace.engine.engine import Engine
from interlace.engine.output import RequestOutput
from interlace.engine.scheduler import Scheduler
from support.tiny_models import VOCAB_SIZE

MOST_TOKENS = 24  # of an output
LENGTHS = (1, 16, 17, 33, 33, 48, 64, 70, 79, 79)  # of prompts
MODEL_LEN = 112
SHAPE: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "num_kv_blocks": 24,
    "max_model_len": MODEL_LEN,
    "max_num_batched_tokens": 128,
    "max_num_seqs": 8,
}
ALONE: dict[str, Any] = {
    "prefix_cache": False,
    "executor": "sequential",
    "weave": "never",
    "replay": False,
    "kv_tiers": (),
    "weights_tier": None,
}
KINDS = (
    SamplingParams(temperature=0, ignore_eos=True, logprobs=2),
    SamplingParams(temperature=0.9, top_p=0.9, seed=5, ignore_eos=True, logprobs=0),
    SamplingParams(
        top_k=20, repetition_penalty=1.3, frequency_penalty=0.5, seed=9, ignore_eos=True, logprobs=1
    ),
)


class Ask(NamedTuple):
    """A request for what follows the beginning of a text, perhaps with a last token of its own."""

    text: int
    length: int
    ending: int
    kind: int  # of KINDS
    max_tokens: int
    salt: str | None

    @property
    def prompt(self) -> list[int]:
        tokens = [(7 + 4 * self.text) * at % VOCAB_SIZE for at in range(self.length)]
        return [*tokens, self.ending] if self.ending else tokens

    @property
    def params(self) -> SamplingParams:
        return replace(KINDS[self.kind], max_tokens=self.max_tokens, cache_salt=self.salt)


class Steps(NamedTuple):
    count: int


class Abort(NamedTuple):
    back: int  # from the last request


class Reset(NamedTuple):
    pass


Program = list[Ask | Steps | Abort | Reset]

asks = st.builds(
    Ask,
    text=st.sampled_from([0, 1, 2]),
    length=st.sampled_from(LENGTHS),
    ending=st.sampled_from([0, 0, 3, 4]),
    kind=st.sampled_from([0, 0, 1, 2]),
    max_tokens=st.sampled_from([1, 2, 9, MOST_TOKENS, MOST_TOKENS]),
    salt=st.sampled_from([*[None] * 7, "a tenant"]),
)
EVENTS = st.sampled_from([*["ask"] * 14, *["steps"] * 8, "abort", "abort", "reset"])


@st.composite
def programs(draw: st.DrawFn, size: int) -> Program:
    """`size` events, over half of them requests."""
    others = {
        "ask": asks,
        "steps": st.builds(Steps, st.sampled_from([1, 2, 5, 12])),
        "abort": st.builds(Abort, st.integers(0, 3)),
        "reset": st.just(Reset()),
    }
    return [draw(others[draw(EVENTS)]) for _ in range(size)]


@dataclass(frozen=True)
class Limits:
    """The part of its ranks that an engine may use, and how it chooses."""

    num_blocks: int
    max_num_seqs: int
    budget: int
    capacities: list[int]  # of the tiers, as far as there are any
    write: str
    policy: str
    fetches: str  # all, some, as planned
    failure_rate: float
    seed: int  # of what is fetched, and what fails


ANY_LIMITS = st.builds(
    Limits,
    num_blocks=st.sampled_from([7, 8, 9, 10, 12]),  # 7 just hold one request
    max_num_seqs=st.sampled_from([1, 4, 8, 8]),
    budget=st.sampled_from([8, 24, 50, 128]),
    capacities=st.lists(st.sampled_from([1, 6, 12, 60, 60]), min_size=2, max_size=2),
    write=st.sampled_from(["through", "back"]),
    policy=st.sampled_from(["lru", "tinylfu"]),
    fetches=st.sampled_from(["all", "some", "some", "as planned"]),
    failure_rate=st.sampled_from([0.0, 0.0, 0.02, 0.1, 0.3]),
    seed=st.integers(0, 2**32),
)


@dataclass
class Stage:
    """The ranks that programs run on, and those that compute each request alone."""

    llm: LLM
    oracle: LLM
    _alone: dict[tuple[tuple[int, ...], int], RequestOutput] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, model: Path, **options: Any) -> Iterator[Stage]:
        shape = {**SHAPE, **options}
        with LLM(str(model), **shape) as llm, LLM(str(model), **{**shape, **ALONE}) as oracle:
            yield cls(llm, oracle)

    def check(self, program: Program, limits: Limits) -> Engine:
        """Runs `program`, and compares what each request gives with what it gives alone. Returns its engine."""
        chance = random.Random(limits.seed)
        engine = self._engine(limits, chance)
        with pytest.MonkeyPatch.context() as patch:
            is_unusable = TierHealth.is_unusable
            patch.setattr(
                TierHealth,
                "is_unusable",
                lambda *slot: is_unusable(*slot) or chance.random() < limits.failure_rate,
            )
            outputs = run(engine, program)
        requests = [event for event in program if isinstance(event, Ask)]
        for number, ask in enumerate(requests):
            self._compare(ask, outputs[str(number)])
        assert engine.scheduler.blocks.num_free == limits.num_blocks
        return engine

    def _engine(self, limits: Limits, chance: random.Random) -> Engine:
        ranks = self.llm._ranks
        engine = Engine(ranks, self.llm.config)
        capacities = [min(pair) for pair in zip(ranks.tier_capacities, limits.capacities, strict=False)]

        def some(question: Question) -> Answer:
            return Answer(chance.randint(0, len(question.tiers)))

        choose = {"all": fetch_all, "some": some, "as planned": ranks.fetch_chooser}[limits.fetches]
        tiers = Tiers(capacities, limits.policy, limits.write, lambda: ranks.is_storing, choose)
        num_seqs = min(limits.max_num_seqs, limits.budget)
        engine.scheduler = Scheduler(limits.num_blocks, num_seqs, limits.budget, tiers)
        return engine

    def _compare(self, ask: Ask, output: RequestOutput) -> None:
        alone = self.alone(ask)
        count = ask.max_tokens if output.finish_reason != "abort" else len(output.token_ids)
        assert output.token_ids == alone.token_ids[:count], ask
        got, expected = output.outputs[0].logprobs, alone.outputs[0].logprobs
        assert expected is not None
        assert list(got or ()) == list(expected[:count]), ask
        metrics = output.metrics
        assert 0 <= metrics.num_fetched_tokens <= metrics.num_cached_tokens < len(ask.prompt)

    def alone(self, ask: Ask) -> RequestOutput:
        """The output of a request of the longest kind, with nothing beside it and nothing kept."""
        key = tuple(ask.prompt), ask.kind
        if key not in self._alone:
            params = replace(ask.params, max_tokens=MOST_TOKENS)
            (self._alone[key],) = self.oracle.generate([ask.prompt], params)
        return self._alone[key]


def run(engine: Engine, program: Program) -> dict[str, RequestOutput]:
    """The outputs of the requests of `program`, by their numbers."""
    outputs: dict[str, RequestOutput] = {}
    num_asked = 0

    def take(chunks: list[StreamChunk]) -> None:
        outputs.update((chunk.request_id, chunk.output) for chunk in chunks if chunk.output is not None)

    def step() -> None:
        take(engine.step())
        engine.check()

    for event in program:
        match event:
            case Ask():
                engine.add_request(str(num_asked), event.prompt, event.params)
                num_asked += 1
            case Steps():
                for _ in range(event.count):
                    step()
            case Abort():
                chunk = engine.abort(str(num_asked - 1 - event.back))
                take([] if chunk is None else [chunk])
            case Reset():
                engine.reset_prefix_cache()
    for _ in range(num_asked * (MODEL_LEN + MOST_TOKENS)):
        step()
        if not engine.has_unfinished:
            break
    assert not engine.has_unfinished
    return outputs
