"""A bad value from a caller, or a failure in a request, ends that request alone: the others keep every token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from interlace import LLM, AsyncLLM, RequestOutput, SamplingParams
from interlace.engine.prompts import tokenise
from interlace.errors import InterlaceError, RequestError, RequestFailed
from interlace.models.batch import ForwardBatch
from support.engine_fakes import (
    ByteDecoder,
    ByteTokenizer,
    FakeRanks,
    greedy_tokens,
    make_engine,
    run_all,
    run_alone,
)
from support.tiny_models import make_model

POISON = 7  # the model computes NaN for a request whose prompt begins with this token
BREAKING = 8  # the tokenizer raises while it decodes this token
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


class BrittleDecoder(ByteDecoder):
    def push(self, token_id: int) -> str:
        if token_id == BREAKING:
            raise ValueError("no such token")
        return super().push(token_id)


class EndlessDecoder(ByteDecoder):
    def flush(self) -> str:
        raise ValueError("half a character")


class BrittleTokenizer(ByteTokenizer):
    def stream(self, skip_special: bool = True, prompt: Sequence[int] = ()) -> ByteDecoder:
        return BrittleDecoder()


class PoisonedRanks(FakeRanks):
    def __init__(self, bad: float = np.nan) -> None:
        super().__init__()
        self.bad = bad
        self.tokenizer = BrittleTokenizer()

    def execute(self, batch: ForwardBatch, sampled: Tensor | None = None) -> Tensor:
        logits = super().execute(batch, sampled)
        ends = (batch.query_start[1:] - 1).tolist()
        for place, row in enumerate(batch.logit_rows.tolist()):
            first_slot = int(batch.block_tables[ends.index(row)][0]) * 16
            if self.cache[first_slot][1] == POISON:
                logits[place] = self.bad
        return logits


# --- any value at all, beside healthy requests

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from(
        [10**30, -(10**30), 10**5000, np.int64(3), np.float32(0.5), np.float64(1e-300), np.bool_(True)]
    ),
    st.floats(),
    st.sampled_from([1e-38, 1e38, 3.4e38, 5e-324, 0.0, -0.0]),
    st.text(max_size=3),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-2, 300)), max_size=3),
    st.sampled_from([b"x", {}, {"a": 1}, ["x"], 1j, object(), range(3)]),
)
some_values = st.dictionaries(
    st.sampled_from(["logit_bias", *SamplingParams.__dataclass_fields__]), anything, max_size=5
)
some_prompts = st.one_of(
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
    st.just([POISON, 1, 2]),
    st.lists(anything, max_size=3),
    st.text(max_size=20),
    anything,
)
HEALTHY = {
    "a": (list(b"hello"), GREEDY),
    "b": (list(b"x" * 20), SamplingParams(max_tokens=12, seed=3, repetition_penalty=1.3, logprobs=2)),
}


@cache
def healthy_alone(name: str) -> RequestOutput:
    return run_alone(*HEALTHY[name])


@settings(max_examples=40)
@given(
    values=some_values,
    prompt=some_prompts,
    request_id=st.one_of(st.just("odd"), anything),
    delay=st.integers(0, 3),
    is_on_device=st.booleans(),
)
def test_whatever_one_request_is_given_the_others_keep_their_tokens(
    values: dict[str, Any], prompt: Any, request_id: Any, delay: int, is_on_device: bool
) -> None:
    ranks = PoisonedRanks()
    ranks.device = torch.device("cpu") if is_on_device else None
    engine = make_engine(ranks, max_num_batched_tokens=64)
    for name, (tokens, params) in HEALTHY.items():
        engine.add_request(name, tokens, params)
    outputs = {}
    for _ in range(delay):
        outputs |= {chunk.request_id: chunk.output for chunk in engine.step() if chunk.output}
    with suppress(InterlaceError):
        params = SamplingParams(**values)
        engine.add_request(request_id, tokenise(engine.ranks.tokenizer, prompt).token_ids, params)
    outputs |= run_all(engine)[0]
    for name in HEALTHY:
        assert outputs[name].outputs == healthy_alone(name).outputs


@settings(max_examples=15)
@given(values=some_values, prompt=some_prompts, request_id=anything)
def test_whatever_one_caller_gives_the_others_of_an_async_llm_keep_their_tokens(
    values: dict[str, Any], prompt: Any, request_id: Any
) -> None:
    async def main() -> None:
        async with AsyncLLM("fake", ranks=PoisonedRanks()) as llm:
            healthy = {
                name: asyncio.create_task(llm.generate(tokens, params))
                for name, (tokens, params) in HEALTHY.items()
            }
            await asyncio.sleep(0)
            with suppress(InterlaceError):
                await llm.generate(prompt, SamplingParams(**values), request_id=request_id)
            with suppress(InterlaceError):
                await llm.abort(request_id)
            for name, task in healthy.items():
                assert (await task).outputs == healthy_alone(name).outputs

    asyncio.run(main())


# --- a request that fails in a step


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_no_numbers_ends_its_own_request(bad: float, temperature: float) -> None:
    ranks = PoisonedRanks(bad)
    engine = make_engine(ranks)
    engine.add_request("healthy", [1, 2], GREEDY)
    engine.add_request("poisoned", [POISON, 2], SamplingParams(temperature=temperature, max_tokens=8))
    outputs, chunks = run_all(engine)
    assert outputs["healthy"].token_ids == greedy_tokens([1, 2], 8)
    assert outputs["poisoned"].finish_reason == "error"
    error = chunks["poisoned"][-1].error
    assert isinstance(error, RequestFailed)
    assert "'poisoned' failed: the model's largest logit after 2 tokens is" in str(error)
    assert error.outputs == [outputs["poisoned"]]
    assert engine.stats().num_free_blocks == 64


def test_a_text_that_cannot_be_decoded_ends_its_own_request() -> None:
    prompt = next([n] for n in range(256) if BREAKING in greedy_tokens([n], 30))
    before = greedy_tokens(prompt, 30).index(BREAKING)
    with LLM("fake", ranks=PoisonedRanks()) as llm:
        healthy = llm.stream([1, 2], GREEDY)
        next(healthy)
        with pytest.raises(RequestFailed, match="failed: ValueError: no such token") as caught:
            llm.generate([prompt], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
        assert len(caught.value.outputs[0].token_ids) == before + 1
        assert len(list(healthy)) == 7
        assert llm.generate([[1, 2]], GREEDY)[0].token_ids == greedy_tokens([1, 2], 8)


def test_an_abort_whose_text_cannot_be_finished_still_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    monkeypatch.setattr(ByteTokenizer, "stream", lambda self, skip_special, prompt: EndlessDecoder())
    engine.add_request("half", [1, 2], GREEDY)
    engine.step()
    chunk = engine.abort("half")
    assert chunk is not None
    assert "half a character" in str(chunk.error)
    assert engine.stats().num_free_blocks == 64
    assert not engine.has_unfinished


def test_a_call_of_many_gives_what_all_came_to() -> None:
    with LLM("fake", ranks=PoisonedRanks()) as llm:
        with pytest.raises(
            RequestFailed, match=r"^1 of 3 requests failed: request 'request-1' failed: "
        ) as caught:
            llm.generate([[1, 2], [POISON], [3]], GREEDY)
        outputs = caught.value.outputs
        assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
        assert outputs[2].token_ids == greedy_tokens([3], 8)
        with pytest.raises(RequestFailed, match=r"^request 'request-3' failed"):
            next(llm.stream([POISON], GREEDY))
        assert llm.stats().num_running == 0


def test_an_async_request_fails_alone() -> None:
    async def main(llm: AsyncLLM) -> None:
        good = [asyncio.create_task(llm.generate([n, 1], GREEDY)) for n in range(3)]
        with pytest.raises(RequestFailed, match="'mine' failed: the model's largest logit"):
            await llm.generate([POISON], GREEDY, request_id="mine")
        for n, task in enumerate(good):
            assert (await task).token_ids == greedy_tokens([n, 1], 8)
        assert (await llm.generate([5], GREEDY, request_id="mine")).token_ids == greedy_tokens([5], 8)

    llm = AsyncLLM("fake", ranks=PoisonedRanks())
    asyncio.run(main(llm))
    llm.close()


# --- ids


@pytest.mark.parametrize("request_id", [["x"], {}, "", 0, b"x", 3, np.array([1]), True])
def test_an_id_that_is_no_string_is_refused_at_the_call(request_id: Any) -> None:
    async def main(llm: AsyncLLM) -> None:
        good = asyncio.create_task(llm.generate([1, 2], GREEDY))
        for call in (llm.generate([1], GREEDY, request_id=request_id), llm.abort(request_id)):
            with pytest.raises(RequestError, match=r"^request_id=.*: expected a string"):
                await call
        assert (await good).token_ids == greedy_tokens([1, 2], 8)
        assert (await llm.generate([3], GREEDY)).token_ids == greedy_tokens([3], 8)

    llm = AsyncLLM("fake", ranks=FakeRanks())
    asyncio.run(main(llm))
    llm.close()


def test_ids_that_are_made_keep_out_of_the_way_of_the_callers_own() -> None:
    async def main(llm: AsyncLLM) -> None:
        names = [f"request-{number}" for number in range(4)]
        mine = [llm.generate([number], GREEDY, request_id=name) for number, name in enumerate(names)]
        outputs = await asyncio.gather(*mine, llm.generate([9], GREEDY), llm.generate([10], GREEDY))
        assert [output.request_id for output in outputs[:4]] == names
        assert [output.token_ids for output in outputs[4:]] == [greedy_tokens([n], 8) for n in (9, 10)]

    llm = AsyncLLM("fake", ranks=FakeRanks())
    asyncio.run(main(llm))
    llm.close()


# --- prompts


def test_arrays_and_tensors_of_ids_are_prompts() -> None:
    expected = greedy_tokens([5, 6], 8)
    with LLM("fake", ranks=FakeRanks()) as llm:
        for prompts in (
            [[np.int64(5), np.uint8(6)]],
            [np.array([5, 6])],
            np.array([[5, 6]]),
            [torch.tensor([5, 6])],
        ):
            (output,) = llm.generate(prompts, GREEDY)  # type: ignore[arg-type]
            assert output.token_ids == expected
            assert output.prompt_token_ids == [5, 6]


@pytest.mark.parametrize(
    "ids",
    [
        [257],
        [-1],
        [10**5000],
        [True],
        [np.bool_(True)],
        [1.0],
        [None],
        ["5"],
        [[1]],
        [np.nan],
        [np.float32(1)],
    ],
)
def test_an_id_that_is_none_of_the_vocabulary_s_is_refused(ids: Any) -> None:
    with (
        LLM("fake", ranks=FakeRanks()) as llm,
        pytest.raises(RequestError, match="expected an integer from 0 to 256"),
    ):
        llm.generate([ids], GREEDY)


def test_a_request_whose_tokenizer_fails_at_the_start_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: object, skip_special: bool, prompt: Sequence[int]) -> ByteDecoder:
        raise ValueError("no such prompt")

    engine = make_engine()
    engine.add_request("healthy", [1, 2], GREEDY)
    monkeypatch.setattr(ByteTokenizer, "stream", broken)
    with pytest.raises(ValueError, match="no such prompt"):
        engine.add_request("broken", [3], GREEDY)
    assert run_all(engine)[0]["healthy"].token_ids == greedy_tokens([1, 2], 8)


# --- a real model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model computes NaN for every text with the token POISON, and for no other."""
    from safetensors.torch import load_file, save_file

    directory = make_model(tmp_path_factory.mktemp("model"), "llama_untied")
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize("tp", [1, 2])
def test_a_poisoned_text_leaves_every_bit_of_the_others(model: Path, tp: int) -> None:
    """Its blocks of the cache, full of NaN, are then other requests' blocks."""
    params = SamplingParams(max_tokens=8, temperature=0.7, seed=1, logprobs=4, ignore_eos=True)
    healthy, poisoned = [[20, 21, 22], list(range(30, 50))], [[20, POISON], [POISON] * 40]
    communicator = "thread" if tp > 1 else "auto"
    with LLM(str(model), tp=tp, communicator=communicator, num_kv_blocks=7, prefix_cache=False) as llm:
        expected = [output.outputs for output in llm.generate(healthy, params)]
        for _ in range(3):
            with pytest.raises(RequestFailed, match=r"2 of 4 .* largest logit .* is nan") as caught:
                llm.generate([poisoned[0], healthy[0], poisoned[1], healthy[1]], params)
            outputs = caught.value.outputs
            assert [outputs[1].outputs, outputs[3].outputs] == expected
            assert [outputs[n].finish_reason for n in (0, 2)] == ["error", "error"]
        assert [output.outputs for output in llm.generate(healthy, params)] == expected


def test_a_real_tokenizer_takes_numpy_s_ids_and_any_stop_string(model: Path) -> None:
    params = SamplingParams(
        max_tokens=4, temperature=0, ignore_eos=True, stop=["\x00", "\uffff", "<|im_end|>"]
    )
    with LLM(str(model), num_kv_blocks=4) as llm:
        ids = np.array([20, 21, 22])
        assert llm.generate([ids], params)[0].token_ids == llm.generate([ids.tolist()], params)[0].token_ids  # type: ignore[list-item]


def test_the_reference_kernels_read_no_other_s_poison_either(model: Path) -> None:
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    with LLM(str(model), kernels="reference", num_kv_blocks=4) as llm:
        expected = llm.generate([[20, 21, 22]], params)[0].token_ids
        with pytest.raises(RequestFailed):
            llm.generate([[POISON] * 56], params)
        assert llm.generate([[20, 21, 22]], params)[0].token_ids == expected
