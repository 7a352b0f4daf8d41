"""The whole engine against a model of memory, under random adds, aborts and steps with few blocks.

`FakeRanks` fails the test when a sequence reads a slot that it did not write itself; `Engine.check` when a block is
leaked or owned twice. Its logits are a pure function of the prefix, so tokens must equal those of the request alone.
"""

from __future__ import annotations

import random
from dataclasses import replace

import hypothesis.strategies as st
import torch
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from interlace.engine.chunk import StreamChunk
from interlace.engine.output import RequestOutput
from interlace.engine.sampling_params import SamplingParams
from support.engine_fakes import EOS, FakeRanks, make_engine, run_alone

MAX_MODEL_LEN = 80

params_strategy = st.builds(
    SamplingParams,
    max_tokens=st.one_of(st.none(), st.integers(1, 60)),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([-1, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**64 - 1),
    stop=st.sampled_from([None, "a", ["\x01\x02", "z"]]),
    stop_token_ids=st.sampled_from([None, [7], [100, 101]]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, 2]),
    cache_salt=st.sampled_from([None, None, "one tenant", "another"]),
)


class EngineMachine(RuleBasedStateMachine):
    unfinished = Bundle("unfinished")

    @initialize(
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(6, 40),
        num_blocks=st.integers(5, 9),  # 5 just hold one request
        is_on_device=st.booleans(),
        prefix_cache=st.sampled_from([True, True, False]),
        capacities=st.lists(st.integers(1, 12), max_size=3),
        write=st.sampled_from(["through", "back"]),
        policy=st.sampled_from(["lru", "tinylfu"]),
        failures=st.randoms(use_true_random=False),
        failure_rate=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    )
    def start(
        self,
        max_num_seqs: int,
        budget: int,
        num_blocks: int,
        is_on_device: bool,
        prefix_cache: bool,
        capacities: list[int],
        write: str,
        policy: str,
        failures: random.Random,
        failure_rate: float,
    ) -> None:
        has_tiers = bool(capacities) and prefix_cache and not is_on_device
        self.ranks = FakeRanks(num_blocks, MAX_MODEL_LEN, capacities if has_tiers else ())
        self.ranks.fails = lambda move: failures.random() < failure_rate
        self.ranks.device = torch.device("cpu") if is_on_device else None
        self.engine = make_engine(
            self.ranks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            prefix_cache=prefix_cache,
            kv_tier_write=write,
            kv_tier_policy=policy,
        )
        self.requests: dict[str, tuple[list[int], SamplingParams]] = {}
        self.chunks: dict[str, list[StreamChunk]] = {}

    @rule(
        target=unfinished,
        prompt=st.one_of(
            st.lists(st.integers(0, EOS), min_size=1, max_size=8),
            # Many equal prefixes, of few texts.
            st.builds(
                lambda text, length: [text] * length, st.integers(7, 9), st.integers(1, MAX_MODEL_LEN - 1)
            ),
            st.builds(
                lambda text, length: [text] * length, st.integers(7, 9), st.integers(33, MAX_MODEL_LEN - 1)
            ),
        ),
        params=params_strategy,
    )
    def add(self, prompt: list[int], params: SamplingParams) -> str:
        request_id = str(len(self.requests))
        self.engine.add_request(request_id, prompt, params)
        self.requests[request_id] = (prompt, params)
        self.chunks[request_id] = []
        return request_id

    @rule(request_id=consumes(unfinished))
    def abort(self, request_id: str) -> None:
        chunk = self.engine.abort(request_id)
        already_ended = bool(self.chunks[request_id]) and self.chunks[request_id][-1].finished
        assert (chunk is None) == already_ended
        if chunk is not None:
            self.receive(chunk)
        assert self.engine.abort(request_id) is None

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            for chunk in self.engine.step():
                self.receive(chunk)
            self.engine.check()

    @rule()
    def reset(self) -> None:
        self.engine.reset_prefix_cache()
        assert self.engine.stats().num_kept_blocks == 0
        tiers = self.engine.scheduler.tiers
        assert tiers is None or not len(tiers.index)

    @rule(is_storing=st.booleans())
    def be_busy(self, is_storing: bool) -> None:
        self.ranks.is_storing = is_storing

    def receive(self, chunk: StreamChunk) -> None:
        chunks = self.chunks[chunk.request_id]
        assert not (chunks and chunks[-1].finished), "a chunk after the last"
        chunks.append(chunk)

    @invariant()
    def passes_keep_their_limits(self) -> None:
        if not hasattr(self, "ranks"):
            return
        for batch in self.ranks.batches:
            assert 0 < batch.num_tokens <= self.engine.config.max_num_batched_tokens
            # A sequence has two rows of the table where tokens in front of what is fetched are computed with it.
            assert batch.num_seqs <= self.engine.config.max_num_seqs * (1 + bool(len(batch.moves)))
        self.ranks.batches.clear()

    @invariant()
    def salts_share_no_block(self) -> None:
        """Nor does anybody share a block that is still being filled."""
        if not hasattr(self, "engine"):
            return
        owners: dict[int, tuple[str | None, int]] = {}
        for sequence in self.engine.scheduler.running:
            for index, block in enumerate(sequence.table.blocks.tolist()):
                if block in owners:
                    assert owners[block] == (sequence.params.cache_salt, index)
                    assert index < sequence.num_published
                owners[block] = (sequence.params.cache_salt, index)

    @invariant()
    def earlier_requests_come_first(self) -> None:
        if hasattr(self, "engine"):
            scheduler = self.engine.scheduler
            arrivals = [int(sequence.request_id) for sequence in [*scheduler.running, *scheduler.waiting]]
            assert arrivals == sorted(arrivals)

    def teardown(self) -> None:
        """Every request ends, within as many passes as all their tokens would take one at a time, three times over."""
        if not hasattr(self, "ranks"):
            return
        for _ in range(3 * MAX_MODEL_LEN * len(self.requests)):
            self.step(1)
        assert not self.engine.has_unfinished
        assert self.engine.scheduler.blocks.num_free == self.ranks.num_blocks
        for request_id, (prompt, params) in self.requests.items():
            self.check_against_run_alone(self.chunks[request_id], prompt, params)

    def check_against_run_alone(
        self, chunks: list[StreamChunk], prompt: list[int], params: SamplingParams
    ) -> None:
        output = chunks[-1].output
        assert output is not None
        assert "".join(chunk.text for chunk in chunks) == output.text
        assert [token for chunk in chunks for token in chunk.token_ids] == output.token_ids
        alone = run_alone(prompt, params, MAX_MODEL_LEN)
        if output.finish_reason == "abort":
            assert output.token_ids == alone.token_ids[: len(output.token_ids)]
        else:
            assert without_times(output) == without_times(alone)


def without_times(output: RequestOutput) -> RequestOutput:
    return replace(output, request_id="", metrics=None)  # type: ignore[arg-type]


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=20, stateful_step_count=30)
