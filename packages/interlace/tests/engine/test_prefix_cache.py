"""Prompts that begin alike are computed once: whatever is found has the bits of what would have been computed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace import LLM, AsyncLLM, SamplingParams
from interlace.engine.cache.names import Roots, TextNames
from interlace.engine.engine import Engine
from interlace.engine.output import RequestOutput
from support.engine_fakes import FakeRanks, greedy_tokens, make_engine, run_all
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_model

LONG = [5] * 40  # two blocks, and half of a third


def greedy(**values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 4, "ignore_eos": True, **values})


def run(engine: Engine, name: str, prompt: list[int], **values: Any) -> RequestOutput:
    engine.add_request(name, prompt, greedy(**values))
    return run_all(engine)[0][name]


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_full_blocks_of_an_earlier_prompt_are_found(device: torch.device | None) -> None:
    ranks = FakeRanks()
    ranks.device = device
    engine = make_engine(ranks)
    cached = [run(engine, f"{n}", LONG).metrics.num_cached_tokens for n in range(2)]
    assert cached == [0, 32]
    assert run(engine, "other", [6] * 40).metrics.num_cached_tokens == 0
    assert run(engine, "longer", [*LONG, 1, 2]).token_ids == greedy_tokens([*LONG, 1, 2], 4)
    assert engine.stats().num_cached_tokens == 64
    assert engine.stats().num_free_blocks == 64


def test_generated_tokens_are_found_too() -> None:
    engine = make_engine()
    answer = run(engine, "first", LONG, max_tokens=30).token_ids
    assert run(engine, "second", [*LONG, *answer, 1]).metrics.num_cached_tokens == 64  # 69 were computed


def test_one_token_is_left_to_compute() -> None:
    engine = make_engine()
    run(engine, "first", [5] * 32)
    again = run(engine, "again", [5] * 32)
    assert (again.metrics.num_cached_tokens, again.token_ids) == (16, greedy_tokens([5] * 32, 4))


@pytest.mark.parametrize(("salts", "expected"), [(("a", "a"), 32), (("a", "b"), 0), ((None, "a"), 0)])
def test_salts_share_nothing(salts: tuple[str | None, str | None], expected: int) -> None:
    engine = make_engine()
    first, second = salts
    run(engine, "first", LONG, cache_salt=first)
    assert run(engine, "second", LONG, cache_salt=second).metrics.num_cached_tokens == expected


def test_requests_at_once_share_what_the_first_has_computed() -> None:
    engine = make_engine(max_num_batched_tokens=64, max_num_seqs=2)
    engine.add_request("one", LONG, greedy())
    engine.add_request("two", LONG, greedy())
    engine.step()  # both prompts, side by side: neither finds anything yet
    engine.step()
    tables = [sequence.table.blocks.tolist() for sequence in engine.scheduler.running]
    assert tables[0][:2] == tables[1][:2]
    assert tables[0][2] != tables[1][2]
    assert engine.stats().num_free_blocks == 60


def test_the_blocks_left_longest_ago_go_first_and_of_a_text_its_end() -> None:
    engine = make_engine(FakeRanks(num_blocks=5))
    run(engine, "old", [1] * 33, max_tokens=1)
    run(engine, "new", [2] * 33, max_tokens=1)  # takes the third of old's and two that were free
    assert engine.stats().num_kept_blocks == 4
    run(engine, "newest", [3] * 17, max_tokens=1)  # takes the end of old's text
    assert run(engine, "new", [2] * 33, max_tokens=1).metrics.num_cached_tokens == 32
    assert run(engine, "old", [1] * 33, max_tokens=1).metrics.num_cached_tokens == 16


def test_a_preempted_request_finds_what_is_left_of_its_own() -> None:
    engine = make_engine(FakeRanks(num_blocks=6), max_num_seqs=2)
    engine.add_request("one", [1] * 30, greedy(max_tokens=40))
    engine.add_request("two", [2] * 30, greedy(max_tokens=40))
    outputs, _ = run_all(engine)
    assert outputs["two"].metrics.num_preemptions > 0
    assert outputs["two"].token_ids == greedy_tokens([2] * 30, 40)
    assert outputs["two"].metrics.num_cached_tokens == 0  # of its prompt, when it came


def test_a_reset_or_a_cache_that_is_off_finds_nothing() -> None:
    off = make_engine(prefix_cache=False)
    assert [run(off, f"{n}", LONG).metrics.num_cached_tokens for n in range(2)] == [0, 0]
    assert off.stats().num_kept_blocks == 0
    engine = make_engine()
    run(engine, "first", LONG)
    engine.add_request("running", LONG, greedy(max_tokens=40))
    engine.step()
    engine.reset_prefix_cache()
    run_all(engine)
    assert run(engine, "last", LONG).metrics.num_cached_tokens == 0


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_what_a_text_left_for_which_the_model_computed_nan_is_not_found(device: torch.device | None) -> None:
    """A fault that passes fails no later request."""
    ranks = FakeRanks()
    ranks.device = device
    engine = make_engine(ranks)
    run(engine, "sound", LONG[:20])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "execute", lambda *given: FakeRanks.execute(ranks, *given).fill_(torch.nan))
        assert run(engine, "failing", LONG).finish_reason == "error"
    assert engine.stats().num_kept_blocks == 0
    assert run(engine, "again", LONG).metrics.num_cached_tokens == 0
    assert run(engine, "found", LONG).token_ids == greedy_tokens(LONG, 4)


def test_requests_that_wait_at_a_reset_share_what_they_compute_after_it() -> None:
    engine = make_engine(max_num_seqs=1)
    for name in ("running", "waiting", "last"):
        engine.add_request(name, LONG, greedy())
    engine.step()
    engine.reset_prefix_cache()
    outputs, _ = run_all(engine)
    cached = {name: output.metrics.num_cached_tokens for name, output in outputs.items()}
    assert cached == {"running": 0, "waiting": 0, "last": 32}


def test_the_fronts_reset_it() -> None:
    def cached(output: RequestOutput) -> int:
        return output.metrics.num_cached_tokens

    async def ask() -> list[int]:
        async with AsyncLLM("fake", ranks=FakeRanks()) as llm:
            found = [cached(await llm.generate(LONG, greedy())) for _ in range(2)]
            await llm.reset_prefix_cache()
            return [*found, cached(await llm.generate(LONG, greedy()))]

    assert asyncio.run(ask()) == [0, 32, 0]
    with LLM("fake", ranks=FakeRanks()) as llm:
        found = [cached(llm.generate([LONG], greedy())[0]) for _ in range(2)]
        llm.reset_prefix_cache()
        assert [*found, cached(llm.generate([LONG], greedy())[0])] == [0, 32, 0]


def test_a_name_depends_on_all_tokens_before_on_the_salt_and_on_the_length() -> None:
    roots = Roots()
    tokens = torch.arange(48, dtype=torch.int32).numpy()
    others = tokens.copy()
    others[0] = 99
    names = TextNames(roots.of(None, 0)).first(3, tokens)
    assert len(set(names)) == 3
    assert TextNames(roots.of(None, 0)).first(2, tokens) == names[:2]
    for root, text in [
        (roots.of(None, 0), others),
        (roots.of("", 0), tokens),
        (roots.of("a", 0), tokens),
        (roots.of(None, 7), tokens),
        (Roots().of(None, 0), tokens),
    ]:
        assert not set(TextNames(root).first(3, text)) & set(names)


ONE_OF_EACH = sorted({model_type: name for name, (model_type, _) in reversed(FAMILIES.items())}.values())
FAST = ("llama", "gemma2", "phi3_longrope")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in [*ONE_OF_EACH, "phi3_longrope", "mistral_window"]
    ],
)
def test_what_is_found_gives_the_bits_of_what_is_computed(family: str, tmp_path: Path) -> None:
    """Also behind a longer prompt, whose positions are rotated otherwise in some families."""
    beginning = [(7 * i) % VOCAB_SIZE for i in range(30)]
    prompts = [beginning, [*beginning, *range(20, 60)], [*beginning, 1, 2, 3]]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=2)
    directory = str(make_model(tmp_path, family))

    def answers(prefix_cache: bool) -> list[RequestOutput]:
        with LLM(directory, dtype="float32", threads=1, prefix_cache=prefix_cache) as llm:
            return [llm.generate([prompt], params)[0] for prompt in [*prompts, *prompts]]

    found, computed = answers(True), answers(False)
    assert [(one.token_ids, one.outputs[0].logprobs) for one in found] == [
        (one.token_ids, one.outputs[0].logprobs) for one in computed
    ]
    assert sum(one.metrics.num_cached_tokens for one in found[3:]) >= 16 + 64 + 32
    assert not any(one.metrics.num_cached_tokens for one in computed)
