from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from interlace import AsyncLLM, SamplingParams
from interlace.errors import EngineError, PromptTooLong, RankFailed, RequestError
from interlace.models.batch import ForwardBatch
from support.engine_fakes import FakeRanks, greedy_tokens
from support.patience import PATIENCE_S

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)


class HeldRanks(FakeRanks):
    """The third step waits until it is let go: whatever runs by then goes on for as long as the test needs it to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.may_go = threading.Event(), threading.Event()

    def execute(self, batch: ForwardBatch, sampled: Tensor | None = None) -> Tensor:
        if len(self.batches) == 2:
            self.is_held.set()
            assert self.may_go.wait(PATIENCE_S)
        return super().execute(batch, sampled)

    async def until_held(self) -> None:
        assert await asyncio.to_thread(self.is_held.wait, PATIENCE_S)


@contextmanager
def async_llm(ranks: FakeRanks | None = None, **options: Any) -> Iterator[AsyncLLM]:
    llm = AsyncLLM("fake", ranks=ranks or FakeRanks(), **options)
    try:
        yield llm
    finally:
        llm.close()


async def until_idle(llm: AsyncLLM) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while llm.stats().num_running or llm.stats().num_waiting:
            await asyncio.sleep(0.001)


async def until_told(llm: AsyncLLM) -> None:
    """Until something waits for the end of the step that is held."""
    async with asyncio.timeout(PATIENCE_S):
        while llm._inbox.empty():
            await asyncio.sleep(0.001)


def test_many_requests_at_once_each_get_their_own_tokens() -> None:
    async def main(llm: AsyncLLM) -> None:
        outputs = await asyncio.gather(*(llm.generate([n, 1], GREEDY) for n in range(40)))
        assert [output.token_ids for output in outputs] == [greedy_tokens([n, 1], 8) for n in range(40)]

    with async_llm(max_num_seqs=16) as llm:
        asyncio.run(main(llm))


def test_a_stream_joins_to_the_generated_text() -> None:
    async def main(llm: AsyncLLM) -> None:
        chunks = [chunk async for chunk in llm.stream("hello", GREEDY)]
        output = await llm.generate("hello", GREEDY)
        assert "".join(chunk.text for chunk in chunks) == output.text
        assert [chunk.finished for chunk in chunks] == [False] * 7 + [True]

    with async_llm() as llm:
        asyncio.run(main(llm))


def test_a_conversation_goes_through_the_chat_template() -> None:
    with async_llm() as llm:
        output = asyncio.run(llm.chat([{"role": "user", "content": "hi"}], GREEDY))
    assert output.prompt == "user: hi\n"


def test_cancelling_the_task_aborts_the_request() -> None:
    async def main(llm: AsyncLLM, ranks: HeldRanks) -> None:
        task = asyncio.create_task(llm.generate("hello", ENDLESS))
        await ranks.until_held()
        assert llm.stats().num_running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ranks.may_go.set()
        await until_idle(llm)
        assert llm.stats().num_free_blocks == 64
        assert len(ranks.batches) == 3  # the one that it was in, and none after it

    ranks = HeldRanks()
    with async_llm(ranks) as llm:
        asyncio.run(main(llm, ranks))


def test_leaving_the_loop_over_a_stream_aborts_the_request() -> None:
    async def main(llm: AsyncLLM, ranks: HeldRanks) -> None:
        async for _ in llm.stream("hello", ENDLESS):
            await ranks.until_held()  # before the request ends, or no step would be left to hold
            break
        await until_told(llm)
        ranks.may_go.set()
        await until_idle(llm)
        assert len(ranks.batches) == 3

    ranks = HeldRanks()
    with async_llm(ranks) as llm:
        asyncio.run(main(llm, ranks))


def test_abort_ends_the_stream_with_its_reason() -> None:
    async def main(llm: AsyncLLM, ranks: HeldRanks) -> None:
        task = asyncio.create_task(llm.generate("hello", ENDLESS, request_id="mine"))
        await ranks.until_held()
        await llm.abort("mine")
        await llm.abort("nobody's")
        ranks.may_go.set()
        output = await task
        assert output.finish_reason == "abort"
        assert output.token_ids == greedy_tokens(list(b"hello"), 3)

    ranks = HeldRanks()
    with async_llm(ranks) as llm:
        asyncio.run(main(llm, ranks))


def test_bad_requests_fail_alone() -> None:
    async def main(llm: AsyncLLM, ranks: HeldRanks) -> None:
        good = asyncio.create_task(llm.generate("hello", ENDLESS, request_id="mine"))
        await ranks.until_held()
        bad = []
        for prompt, request_id, error in (
            ("", None, RequestError),
            ("x" * 200, None, PromptTooLong),
            ("hello", "mine", RequestError),
            (7, None, RequestError),
        ):
            sent = llm.generate(prompt, GREEDY, request_id=request_id)  # type: ignore[arg-type]
            bad.append((asyncio.create_task(sent), error))
        await asyncio.sleep(0)  # each task has begun, and sent its request
        ranks.may_go.set()
        for task, error in bad:
            with pytest.raises(error):
                await task
        assert (await good).token_ids == greedy_tokens(list(b"hello"), 100)

    ranks = HeldRanks()
    with async_llm(ranks) as llm:
        asyncio.run(main(llm, ranks))


def test_an_error_in_a_step_reaches_every_stream_and_every_later_call() -> None:
    async def main(llm: AsyncLLM, ranks: HeldRanks) -> None:
        tasks = [asyncio.create_task(llm.generate([n], ENDLESS)) for n in range(8)]
        await ranks.until_held()
        ranks.failure = RankFailed("rank 1 was killed by SIGKILL", 1)
        ranks.may_go.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        assert [getattr(result, "rank", None) for result in results] == [1] * 8
        for call in (llm.generate("x", GREEDY), llm.describe(), llm.abort("x")):
            with pytest.raises(RankFailed, match="rank 1"):
                await call

    ranks = HeldRanks()
    with async_llm(ranks, max_num_seqs=4) as llm:
        asyncio.run(main(llm, ranks))


def test_close_ends_open_streams_and_later_calls() -> None:
    async def main() -> None:
        ranks = HeldRanks()
        async with AsyncLLM("fake", ranks=ranks) as llm:
            task = asyncio.create_task(llm.generate("hello", ENDLESS))
            await ranks.until_held()
            close = asyncio.create_task(asyncio.to_thread(llm.close))
            await until_told(llm)
            ranks.may_go.set()
            await close
        with pytest.raises(EngineError, match="AsyncLLM is closed"):
            await task
        with pytest.raises(EngineError, match="AsyncLLM is closed"):
            await llm.generate("hello", GREEDY)
        assert ranks.closed
        llm.close()

    asyncio.run(main())


def test_close_is_bounded_and_ends_streams_even_while_a_step_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlace.engine.async_llm.JOIN_MARGIN_S", 0.05)

    async def main() -> None:
        ranks = HeldRanks()
        async with AsyncLLM("fake", ranks=ranks, timeout_s=0.05) as llm:
            task = asyncio.create_task(llm.generate("hello", GREEDY))
            await ranks.until_held()
        with pytest.raises(EngineError, match="closed"):
            await asyncio.wait_for(task, PATIENCE_S)
        ranks.may_go.set()
        await asyncio.to_thread(llm._thread.join, PATIENCE_S)

    asyncio.run(main())


def test_an_event_loop_closed_early_leaves_nothing_running() -> None:
    ranks = HeldRanks()
    with async_llm(ranks) as llm:
        loop = asyncio.new_event_loop()
        stream = llm.stream("hello", ENDLESS)
        loop.run_until_complete(anext(stream))
        assert ranks.is_held.wait(PATIENCE_S)
        loop.close()
        ranks.may_go.set()
        asyncio.run(until_idle(llm))
        assert asyncio.run(llm.generate("hello", GREEDY)).token_ids == greedy_tokens(list(b"hello"), 8)
        with pytest.raises(StopAsyncIteration):
            asyncio.run(exhausted(stream))


async def exhausted(stream: Any) -> None:
    await stream.aclose()
    await anext(stream)


def test_describe_asks_the_ranks_between_steps() -> None:
    with async_llm() as llm:
        assert asyncio.run(llm.describe()) == {"ranks": []}


def test_what_the_chat_template_is_given_reaches_it() -> None:
    async def main(llm: AsyncLLM) -> None:
        messages = [{"role": "user", "content": "hi"}]
        options: dict[str, Any] = {"tools": [], "chat_template_kwargs": {"enable_thinking": True}}
        outputs = [
            await llm.chat(messages, GREEDY, **options),
            await llm.generate(messages, GREEDY, **options),
            [chunk.output async for chunk in llm.stream(messages, GREEDY, **options)][-1],
        ]
        prompts = [output.prompt for output in outputs if output is not None]
        assert prompts == ["enable_thinking=True tools=[] user: hi\n"] * 3
        with pytest.raises(RequestError, match="unknown argument 'toools'"):
            await llm.chat(messages, GREEDY, toools=[])  # type: ignore[call-arg]

    with async_llm() as llm:
        asyncio.run(main(llm))
