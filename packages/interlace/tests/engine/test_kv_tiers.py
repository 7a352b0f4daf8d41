"""Tiers below the KV cache: what comes back from them has the bits of what would have been computed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from interlace import LLM, SamplingParams
from interlace.engine.cache.fetching import Answer
from interlace.engine.engine import Engine
from interlace.engine.output import RequestOutput
from interlace.engine.sequence import Sequence
from interlace.models.moves import MoveKind
from support.engine_fakes import FakeRanks, greedy_tokens, make_engine, run_all
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_model

BEGINNING = [(7 * i) % VOCAB_SIZE for i in range(70)]
OTHERS = [[(11 * i + n) % VOCAB_SIZE for i in range(90)] for n in range(3)]
PROMPTS = [BEGINNING, *OTHERS, [*BEGINNING, 1, 2, 3], BEGINNING[:40], OTHERS[0]]
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
TIER = "dram:4MiB"
ONE_OF_EACH = sorted({model_type: name for name, (model_type, _) in reversed(FAMILIES.items())}.values())
FAST = ("llama",)


def answers(directory: Path, num_prompts: int = 7, **options: Any) -> list[RequestOutput]:
    """Those of PROMPTS, one after the other, in a local cache that holds little more than one of them."""
    options = {
        "dtype": "float32",
        "threads": 1,
        "num_kv_blocks": 8,
        "max_model_len": 120,
        "kv_fetch": "always",
        **options,
    }
    with LLM(str(directory), **options) as llm:
        return [llm.generate([prompt], PARAMS)[0] for prompt in PROMPTS[:num_prompts]]


def bits(outputs: list[RequestOutput]) -> list[Any]:
    return [(output.token_ids, output.outputs[0].logprobs) for output in outputs]


@pytest.mark.parametrize("write", ["through", "back"])
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ONE_OF_EACH],
)
def test_what_is_fetched_gives_the_bits_of_what_is_computed(family: str, write: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path, family)
    fetched = answers(directory, kv_tiers=[TIER], kv_tier_write=write)
    assert bits(fetched) == bits(answers(directory, prefix_cache=False))
    assert [output.metrics.num_cached_tokens for output in fetched] == [0, 0, 0, 0, 64, 32, 80]
    assert [output.metrics.num_fetched_tokens for output in fetched[:4]] == [0, 0, 0, 0]
    assert all(output.metrics.num_fetched_tokens for output in (fetched[4], fetched[6]))


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "sequential"},
        {"kernels": "reference"},
        {"dtype": "bfloat16"},
        {"tp": 2, "weave": "always", "communicator": "thread"},
        {"max_num_batched_tokens": 64},
        {"kv_tiers": ["dram:70KiB", "cxl:4MiB@cxl-direct"], "kv_tier_write": "back"},
    ],
    ids=str,
)
def test_every_executor_fetches_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    directory = make_model(tmp_path, "llama")
    fetched = answers(directory, **{"kv_tiers": [TIER], **options})
    computed = answers(directory, **{**options, "kv_tiers": (), "prefix_cache": False})
    assert bits(fetched) == bits(computed)
    assert fetched[6].metrics.num_fetched_tokens == 80
    assert fetched[6].metrics.fetch_s > 0


@given(
    groups=st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.integers(20, 100)), min_size=1, max_size=4), max_size=6
    ),
    num_blocks=st.integers(8, 20),
    capacities=st.lists(st.integers(2, 30), min_size=1, max_size=3),
    budget=st.integers(16, 128),
    write=st.sampled_from(["through", "back"]),
    policy=st.sampled_from(["lru", "tinylfu"]),
    failures=st.randoms(use_true_random=False),
    failure_rate=st.sampled_from([0.0, 0.0, 0.02, 0.5]),
    fetches_some=st.booleans(),
)
@settings(max_examples=40)
def test_requests_over_few_texts_read_what_was_written_under_their_names(
    groups: list[list[tuple[int, int]]],
    num_blocks: int,
    capacities: list[int],
    budget: int,
    write: str,
    policy: str,
    failures: random.Random,
    failure_rate: float,
    fetches_some: bool,
) -> None:
    ranks = FakeRanks(num_blocks, tier_capacities=capacities)
    ranks.fails = lambda move: failures.random() < failure_rate
    if fetches_some:
        ranks.fetch_chooser = lambda question: Answer(failures.randint(0, len(question.tiers)))
    options = {"max_num_seqs": 4, "max_num_batched_tokens": budget}
    engine = make_engine(ranks, kv_tier_write=write, kv_tier_policy=policy, **options)
    for number, group in enumerate(groups):
        for place, (text, length) in enumerate(group):
            engine.add_request(f"{number} {place}", [text] * length, GREEDY)
        outputs, _ = run_all(engine)
        for place, (text, length) in enumerate(group):
            assert outputs[f"{number} {place}"].token_ids == greedy_tokens([text] * length, 4)
    assert engine.stats().num_free_blocks == num_blocks


def test_a_tier_that_never_pays_is_told_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = make_model(tmp_path, "llama")
    tier = "slow:1MiB@0.001GB/s,10ms"
    answers(directory, kv_tiers=[tier], num_prompts=0)
    assert not [record for record in caplog.records if "will never pay" in record.message]
    answers(directory, kv_tiers=[tier], kv_fetch="auto", num_prompts=0)
    assert [record.args for record in caplog.records if "will never pay" in record.message] == [(tier,)]


def test_a_miss_costs_no_request() -> None:
    ranks = FakeRanks(num_blocks=8, tier_capacities=(64,))
    ranks.fails = lambda move: True
    engine = make_engine(ranks)
    prompts = [[n] * 100 for n in (1, 2, 1)]
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, GREEDY)
        output = run_all(engine)[0][str(number)]
        assert output.token_ids == greedy_tokens(prompt, 4)
        assert output.metrics.num_fetched_tokens == 0
    assert engine.scheduler.tiers is not None
    assert engine.scheduler.tiers.num_misses == 1


def test_what_was_fetched_behind_the_tokens_of_a_pass_waits_until_these_reach_it() -> None:
    sequence = Sequence("r", [1] * 200, GREEDY, 0, 4096)
    sequence.ready, sequence.fetch_s = range(8, 12), 0.5
    sequence.compute_to(64)
    assert (sequence.num_computed, sequence.ready) == (64, range(8, 12))
    sequence.compute_to(128)
    assert (sequence.num_computed, len(sequence.ready), sequence.fetch_s) == (192, 0, 0.5)


def with_texts_below(*texts: list[int], budget: int = 32) -> tuple[FakeRanks, Engine]:
    """An engine that has each of `texts` in a tier, and none of them in local memory."""
    ranks = FakeRanks(num_blocks=12, tier_capacities=(64,))
    engine = make_engine(ranks, max_num_seqs=4, max_num_batched_tokens=budget)
    for number, prompt in enumerate([*texts, [9] * 120, [8] * 120]):
        engine.add_request(f"before {number}", prompt, GREEDY)
        run_all(engine)
    ranks.moves.clear()
    return ranks, engine


def test_a_block_is_fetched_once_where_a_prompt_takes_several_passes() -> None:
    prompt = [1] * 120
    ranks, engine = with_texts_below(prompt)
    tiers = engine.scheduler.tiers
    assert tiers is not None
    tiers._chooser = lambda question: Answer(1)
    engine.add_request("again", prompt, GREEDY)
    output = run_all(engine)[0]["again"]
    fetched = [move.from_index for move in ranks.moves if move.kind is MoveKind.FETCH]
    assert len(fetched) == len(set(fetched)) > 1
    assert output.metrics.num_fetched_tokens == 16 * len(fetched)
    assert output.token_ids == greedy_tokens(prompt, 4)


def test_a_request_whose_fetch_failed_keeps_its_turn() -> None:
    texts = [[1] * 30, [2] * 30]
    ranks, engine = with_texts_below(*texts)
    ranks.fails = lambda move: move.from_index == ranks.moves[0].from_index
    for name, prompt in zip("ab", texts, strict=True):
        engine.add_request(name, prompt, GREEDY)
    chunks = [chunk for _ in range(2) for chunk in engine.step()]
    assert ranks.moves
    assert [sequence.request_id for sequence in engine.scheduler.running] == ["a", "b"]
    assert [chunk.request_id for chunk in chunks] == ["b", "a", "b"]
    outputs, _ = run_all(engine)
    assert [outputs[name].token_ids for name in "ab"] == [greedy_tokens(text, 4) for text in texts]
    assert [outputs[name].metrics.num_fetched_tokens for name in "ab"] == [0, 16]


def test_what_was_computed_behind_a_block_that_did_not_come_is_found_in_no_tier() -> None:
    ranks, engine = with_texts_below([1] * 40, budget=128)
    fates = iter([True])
    ranks.fails = lambda move: next(fates, False)
    for number, prompt in enumerate([[1] * 120, [7] * 120, [6] * 120, [1] * 120]):
        engine.add_request(str(number), prompt, GREEDY)
        output = run_all(engine)[0][str(number)]
        assert output.token_ids == greedy_tokens(prompt, 4)
    assert engine.scheduler.tiers is not None
    assert engine.scheduler.tiers.num_misses == 1
    assert output.metrics.num_fetched_tokens
