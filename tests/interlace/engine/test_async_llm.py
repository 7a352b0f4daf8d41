from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from interlace import AsyncLLM, SamplingParams
from interlace.errors import EngineError, PromptTooLong, RankFailed, RequestError
from interlace.models.batch import ForwardBatch
from support.engine_fakes import FakeRanks, greedy_tokens

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)


class SlowRanks(FakeRanks):
    """A step takes 2 ms, so that there is time to cancel."""

    def execute(self, batch: ForwardBatch) -> Tensor:
        time.sleep(0.002)
        return super().execute(batch)


@contextmanager
def async_llm(ranks: FakeRanks | None = None, **options: Any) -> Iterator[AsyncLLM]:
    llm = AsyncLLM("fake", ranks=ranks or FakeRanks(), **options)
    try:
        yield llm
    finally:
        llm.close()


async def until_idle(llm: AsyncLLM) -> None:
    async with asyncio.timeout(5):
        while llm.stats().num_running or llm.stats().num_waiting:
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
    async def main(llm: AsyncLLM) -> None:
        task = asyncio.create_task(llm.generate("hello", ENDLESS))
        await asyncio.sleep(0.02)
        assert llm.stats().num_running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(llm)
        assert llm.stats().num_free_blocks == 64

    with async_llm(SlowRanks()) as llm:
        asyncio.run(main(llm))


def test_leaving_the_loop_over_a_stream_aborts_the_request() -> None:
    async def main(llm: AsyncLLM) -> None:
        async for _ in llm.stream("hello", ENDLESS):
            break
        await until_idle(llm)

    with async_llm(SlowRanks()) as llm:
        asyncio.run(main(llm))


def test_abort_ends_the_stream_with_its_reason() -> None:
    async def main(llm: AsyncLLM) -> None:
        task = asyncio.create_task(llm.generate("hello", ENDLESS, request_id="mine"))
        await asyncio.sleep(0.02)
        await llm.abort("mine")
        await llm.abort("nobody's")
        output = await task
        assert output.finish_reason == "abort"
        assert output.token_ids == greedy_tokens(list(b"hello"), len(output.token_ids))

    with async_llm(SlowRanks()) as llm:
        asyncio.run(main(llm))


def test_bad_requests_fail_alone() -> None:
    async def main(llm: AsyncLLM) -> None:
        good = asyncio.create_task(llm.generate("hello", ENDLESS, request_id="mine"))
        await asyncio.sleep(0.01)
        for prompt, request_id, error in (
            ("", None, RequestError),
            ("x" * 200, None, PromptTooLong),
            ("hello", "mine", RequestError),
            (7, None, RequestError),
        ):
            with pytest.raises(error):
                await llm.generate(prompt, GREEDY, request_id=request_id)  # type: ignore[arg-type]
        assert (await good).token_ids == greedy_tokens(list(b"hello"), 100)

    with async_llm(SlowRanks()) as llm:
        asyncio.run(main(llm))


def test_an_error_in_a_step_reaches_every_stream_and_every_later_call() -> None:
    async def main(llm: AsyncLLM, ranks: FakeRanks) -> None:
        tasks = [asyncio.create_task(llm.generate([n], ENDLESS)) for n in range(8)]
        await asyncio.sleep(0.02)
        ranks.failure = RankFailed("rank 1 was killed by SIGKILL", 1)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert [getattr(result, "rank", None) for result in results] == [1] * 8
        for call in (llm.generate("x", GREEDY), llm.describe(), llm.abort("x")):
            with pytest.raises(RankFailed, match="rank 1"):
                await call

    ranks = SlowRanks()
    with async_llm(ranks, max_num_seqs=4) as llm:
        asyncio.run(main(llm, ranks))


def test_close_ends_open_streams_and_later_calls() -> None:
    async def main() -> None:
        ranks = SlowRanks()
        async with AsyncLLM("fake", ranks=ranks) as llm:
            task = asyncio.create_task(llm.generate("hello", ENDLESS))
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="AsyncLLM is closed"):
            await task
        with pytest.raises(EngineError, match="AsyncLLM is closed"):
            await llm.generate("hello", GREEDY)
        assert ranks.closed
        llm.close()

    asyncio.run(main())


def test_close_is_bounded_and_ends_streams_even_while_a_step_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlace.engine.async_llm.JOIN_MARGIN_S", 0.05)
    release = threading.Event()

    class HangingRanks(FakeRanks):
        def execute(self, batch: ForwardBatch) -> Tensor:
            release.wait()
            return super().execute(batch)

    async def main() -> None:
        async with AsyncLLM("fake", ranks=HangingRanks(), timeout_s=0.05) as llm:
            task = asyncio.create_task(llm.generate("hello", GREEDY))
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="closed"):
            await asyncio.wait_for(task, 1)
        release.set()
        await asyncio.to_thread(llm._thread.join, 5)

    asyncio.run(main())


def test_an_event_loop_closed_early_leaves_nothing_running() -> None:
    with async_llm(SlowRanks()) as llm:
        loop = asyncio.new_event_loop()
        stream = llm.stream("hello", ENDLESS)
        loop.run_until_complete(anext(stream))
        loop.close()
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
