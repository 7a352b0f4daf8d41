from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.errors import (
    CacheTooSmall,
    EngineError,
    PromptTooLong,
    RankFailed,
    RequestError,
    SamplingError,
)
from interlace.models.batch import ForwardBatch
from support.engine_fakes import FakeRanks, greedy_tokens
from support.patience import PATIENCE_S

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def make_llm(ranks: FakeRanks | None = None, **options: Any) -> LLM:
    return LLM("fake", ranks=ranks or FakeRanks(), **options)


def test_one_text_gives_one_output() -> None:
    (output,) = make_llm().generate("hello", GREEDY)
    assert output.token_ids == greedy_tokens(list(b"hello"), 8)
    assert (output.prompt, output.prompt_token_ids) == ("hello", list(b"hello"))
    assert output.finish_reason == "length"


def test_outputs_come_in_the_order_of_the_prompts() -> None:
    prompts = ["a" * 30, "b", "c" * 60, "d" * 3]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (9, 2, 5, 7)]
    outputs = make_llm(max_num_seqs=2, max_num_batched_tokens=16).generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    expected = [greedy_tokens(list(p.encode()), n) for p, n in zip(prompts, (9, 2, 5, 7), strict=True)]
    assert [output.token_ids for output in outputs] == expected


def test_token_ids_are_prompts_too() -> None:
    outputs = make_llm().generate([[1, 2, 3], [4]], GREEDY)
    assert [output.token_ids for output in outputs] == [greedy_tokens([1, 2, 3], 8), greedy_tokens([4], 8)]
    assert outputs[0].prompt is None


def test_no_prompts_give_no_outputs() -> None:
    assert make_llm().generate([], GREEDY) == []


def test_chat_applies_the_template_to_one_conversation_or_many() -> None:
    llm = make_llm()
    conversation = [{"role": "user", "content": "hi"}]
    (one,) = llm.chat(conversation, GREEDY)
    many = llm.chat([conversation, conversation], GREEDY)
    assert one.prompt == "user: hi\n"
    assert [output.token_ids for output in many] == [one.token_ids] * 2


def test_streamed_chunks_join_to_the_generated_text() -> None:
    llm = make_llm()
    (whole,) = llm.generate("hello", GREEDY)
    chunks = list(llm.stream("hello", GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert [chunk.finished for chunk in chunks] == [False] * 7 + [True]


def test_a_closed_stream_gives_its_blocks_back() -> None:
    llm = make_llm()
    chunks = llm.stream("hello", GREEDY)
    next(chunks)
    assert llm.stats().num_running == 1
    chunks.close()  # type: ignore[attr-defined]
    assert (llm.stats().num_running, llm.stats().num_free_blocks) == (0, 64)


def test_generate_goes_on_while_a_stream_is_paused() -> None:
    llm = make_llm()
    chunks = llm.stream("hello", GREEDY)
    first = next(chunks)
    (output,) = llm.generate("other", GREEDY)
    rest = [token for chunk in chunks for token in chunk.token_ids]
    assert output.token_ids == greedy_tokens(list(b"other"), 8)
    assert first.token_ids + rest == greedy_tokens(list(b"hello"), 8)


def test_threads_may_share_an_llm() -> None:
    llm = make_llm(max_num_seqs=4)
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        results[number] = llm.generate([[number, 7]], GREEDY)[0].token_ids

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: greedy_tokens([number, 7], 8) for number in range(8)}


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        ("", RequestError),
        ([[]], RequestError),
        ([[1, 257]], RequestError),
        ([[-1]], RequestError),
        ([["a"]], RequestError),
        ([1, 2], RequestError),
        (b"bytes", RequestError),
        (7, RequestError),
        ("x" * 128, PromptTooLong),
    ],
)
def test_a_bad_prompt_is_a_clear_error_and_nothing_is_run(prompts: Any, error: type[Exception]) -> None:
    llm = make_llm()
    with pytest.raises(error, match=r"expected|shorten"):
        llm.generate(prompts if isinstance(prompts, (bytes, int)) else ["good", *as_list(prompts)], GREEDY)
    assert llm.stats().num_waiting == 0
    assert llm.generate("good", GREEDY)[0].token_ids == greedy_tokens(list(b"good"), 8)


def as_list(prompts: Any) -> list[Any]:
    return [prompts] if isinstance(prompts, str) else prompts


def test_a_request_larger_than_the_cache_is_refused_at_once() -> None:
    llm = make_llm(FakeRanks(num_blocks=2))
    with pytest.raises(CacheTooSmall, match="max_tokens"):
        llm.generate("x" * 30, SamplingParams(max_tokens=8))
    assert len(llm.generate("x" * 25, GREEDY)[0].token_ids) == 8  # 33 tokens: 32 are kept


@pytest.mark.parametrize("params", [[GREEDY] * 2, [GREEDY, None, GREEDY], "greedy", 3])
def test_parameters_must_be_one_or_one_each(params: Any) -> None:
    with pytest.raises(SamplingError, match="expected"):
        make_llm().generate(["a", "b", "c"], params)


def test_bad_conversations_are_refused() -> None:
    for messages in ([], "hello", [["hello"]], [{}, "x"]):
        if messages == []:
            assert make_llm().chat(messages, GREEDY) == []
            continue
        with pytest.raises(RequestError, match="expected a conversation"):
            make_llm().chat(messages, GREEDY)


def test_a_failing_rank_reaches_the_call_and_every_later_one() -> None:
    ranks = FakeRanks()
    llm = make_llm(ranks)
    paused = llm.stream("hello", GREEDY)
    next(paused)
    ranks.failure = RankFailed("rank 1 was killed by SIGKILL", 1)
    for call in (
        lambda: llm.generate("x", GREEDY),
        lambda: next(paused),
        lambda: llm.generate("y", GREEDY),
        lambda: llm.stream("z", GREEDY),
        llm.describe,
    ):
        with pytest.raises(RankFailed, match="rank 1") as failure:
            call()
        assert failure.value.rank == 1
    llm.close()


def test_a_failing_rank_reaches_all_waiting_threads() -> None:
    class Failing(FakeRanks):
        def execute(self, batch: ForwardBatch, sampled: torch.Tensor | None = None) -> torch.Tensor:
            if len(self.batches) == 5:
                raise RankFailed("rank 1 died", 1)
            return super().execute(batch, sampled)

    llm = make_llm(Failing())
    errors: list[str] = []

    def work() -> None:
        try:
            llm.generate("hello", SamplingParams(max_tokens=100, ignore_eos=True))
        except RankFailed as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert errors == ["rank 1 died"] * 4


def test_after_ctrl_c_the_requests_are_gone_and_the_llm_still_works() -> None:
    class Interrupted(FakeRanks):
        def execute(self, batch: ForwardBatch, sampled: torch.Tensor | None = None) -> torch.Tensor:
            if len(self.batches) == 3:
                signal.raise_signal(signal.SIGINT)
            return super().execute(batch, sampled)

    llm = make_llm(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], GREEDY)
    assert (llm.stats().num_running, llm.stats().num_free_blocks) == (0, 64)
    assert llm.generate("hello", GREEDY)[0].token_ids == greedy_tokens(list(b"hello"), 8)


def test_a_closed_llm_says_so() -> None:
    ranks = FakeRanks()
    with make_llm(ranks) as llm:
        chunks = llm.stream("hello", GREEDY)
        next(chunks)
    assert ranks.closed
    llm.close()
    with pytest.raises(EngineError, match="LLM is closed"):
        next(chunks)
    with pytest.raises(EngineError, match="LLM is closed"):
        llm.generate("hello", GREEDY)


def test_progress_is_written_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    make_llm().generate(["a", "b"], GREEDY, progress=True)
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert captured.out == ""


def test_unknown_and_bad_options_are_engine_errors() -> None:
    with pytest.raises(EngineError, match="max_seqs"):
        make_llm(max_seqs=3)
    with pytest.raises(EngineError, match="tp=0"):
        make_llm(tp=0)


CONVERSATION = [{"role": "user", "content": "hi"}]


def test_what_the_chat_template_is_given_reaches_it() -> None:
    llm = make_llm()
    options: dict[str, Any] = {
        "tools": [{"type": "function"}],
        "chat_template": "x",
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
    }
    expected = (
        "chat_template=x continue_final_message=True enable_thinking=False tools=[{'type': 'function'}] "
    )
    assert llm.chat(CONVERSATION, GREEDY, **options)[0].prompt == f"{expected}user: hi\n"
    assert [chunk.output.prompt for chunk in llm.stream(CONVERSATION, GREEDY, **options) if chunk.output] == [
        f"{expected}user: hi\n"
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"toools": []}, "unknown argument 'toools': expected one of tools, "),
        ({"enable_thinking": True}, "unknown argument 'enable_thinking': .* go into chat_template_kwargs"),
        ({"chat_template_kwargs": ["x"]}, r"chat_template_kwargs=\['x'\]: expected a mapping"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs has 'tools'"),
        ({"chat_template_kwargs": {3: 4}}, "chat_template_kwargs has 3"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs has 'messages'"),
        ({"add_generation_prompt": "no"}, "add_generation_prompt='no': expected True or False"),
    ],
)
def test_what_no_chat_template_can_be_given_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        make_llm().chat(CONVERSATION, GREEDY, **options)


def test_only_a_conversation_takes_what_is_for_the_chat_template() -> None:
    for prompt in ("hello", [1, 2]):
        with pytest.raises(
            RequestError, match=r"got tools with a prompt of type .*: expected a conversation"
        ):
            make_llm().stream(prompt, GREEDY, tools=[])
