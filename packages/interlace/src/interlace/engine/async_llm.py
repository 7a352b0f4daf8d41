"""AsyncLLM: the engine for asyncio. One background thread owns it; requests reach it through an inbox.

Thread safety: any thread and any event loop may call. Everything the engine thread owns (`_engine`, `_streams`) is
touched only by commands that it takes from the inbox. When the ranks fail, every stream and every later call ends.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from interlace.engine.chunk import StreamChunk
from interlace.engine.config import EngineOptions
from interlace.engine.llm import FrontEnd
from interlace.engine.output import RequestOutput
from interlace.engine.prompts import (
    ChatOptions,
    Conversation,
    Prompt,
    TokenisedPrompt,
    tokenise,
)
from interlace.engine.protocols import Ranks
from interlace.engine.request import as_request_id
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import EngineError

JOIN_MARGIN_S = 5.0  # over the ranks' own timeout, from being told to end until being left behind

Item = StreamChunk | Exception
Command = Callable[[], None]
Answer = TypeVar("Answer")


class AsyncLLM(FrontEnd):
    """A model, ready to generate for many tasks at once. Takes what LLM takes; starting blocks, as there."""

    def __init__(self, model: str, *, ranks: Ranks | None = None, **options: Unpack[EngineOptions]) -> None:
        super().__init__(model, ranks=ranks, **options)
        self._numbers = itertools.count()
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()  # None: end
        self._streams: dict[str, _Stream] = {}
        self._lock = threading.Lock()  # orders commands before the failure that answers them, or refuses them
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="interlace-engine", daemon=True)
        self._thread.start()

    async def generate(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **chat: Unpack[ChatOptions],
    ) -> RequestOutput:
        """The output for one text, list of token ids or conversation. Cancelling the task aborts the request.

        Raises as LLM.generate; RequestError also for a `request_id` that is in use or no string.
        """
        async for chunk in self.stream(prompt, sampling_params, request_id=request_id, **chat):
            if chunk.output is not None:
                return chunk.output
        raise EngineError("a request ended without an output; this is a bug in the engine")

    async def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **chat: Unpack[ChatOptions],
    ) -> RequestOutput:
        """The reply to a conversation: `generate`, by the name it has in LLM."""
        return await self.generate(messages, sampling_params, request_id=request_id, **chat)

    async def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **chat: Unpack[ChatOptions],
    ) -> AsyncIterator[StreamChunk]:
        """The same, a chunk per token. Closing the iterator aborts the request."""
        tokenised = tokenise(self.tokenizer, prompt, chat)
        (params,) = self._params_for_each(sampling_params, 1)
        stream = _Stream(None if request_id is None else as_request_id(request_id))
        self._send(partial(self._add, stream, tokenised, params))
        try:
            while True:
                item = await stream.items.get()
                if isinstance(item, Exception):
                    raise item.with_traceback(None)
                if item.error is not None:
                    raise item.error
                yield item
                if item.finished:
                    return
        finally:
            self._inbox.put(partial(self._abandon, stream))

    async def abort(self, request_id: str) -> None:
        """Ends a request; its stream gets a last chunk with finish reason "abort". Nothing if it had ended.

        Raises:
            RequestError: `request_id` is no string.
        """
        self._send(partial(self._abort, as_request_id(request_id)))

    async def describe(self) -> dict[str, object]:
        """The ranks: where they run, communicator, dtype, threads, memory."""
        return await self._ask(self._ranks.describe)

    async def reset_prefix_cache(self) -> None:
        """Has no request find what was computed before this call."""
        await self._ask(self._engine.reset_prefix_cache)

    async def _ask(self, call: Callable[[], Answer]) -> Answer:
        """Returns what `call` gives between two steps, in the engine's thread."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._send(partial(self._answer, call, loop, answer))
        return await answer

    def close(self) -> None:
        """Ends the engine thread and the ranks. Streams that are open, and later calls, raise EngineError.

        Returns within the ranks' timeout plus ten seconds, even if a step hangs. Does nothing in a fork of the process.
        """
        if self._owner.is_elsewhere:
            return
        self._inbox.put(None)
        self._thread.join(self.config.timeout_s + JOIN_MARGIN_S)
        self._end(self._closed_error())
        self._ranks.close()
        self._thread.join(JOIN_MARGIN_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _send(self, command: Command) -> None:
        self._owner.check()
        with self._lock:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            self._inbox.put(command)

    # What follows runs in the engine thread.

    def _serve(self) -> None:
        failure: Exception = self._closed_error()
        try:
            while self._obey():
                self._deliver(self._engine.step())
        except Exception as error:
            failure = error
        self._end(failure)

    def _obey(self) -> bool:
        """Carries out the commands that are there, waiting for one while idle; False when told to end."""
        while True:
            try:
                command = self._inbox.get(block=not self._engine.has_unfinished)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _end(self, failure: Exception) -> None:
        """From here on every call raises `failure`; every stream gets it."""
        with self._lock:
            self._failure = self._failure or failure
        self._engine.fail(self._failure)
        for stream in list(self._streams.values()):
            stream.put([self._failure])
        self._streams.clear()
        while not self._inbox.empty():  # each finds the engine failed and tells its stream
            if (command := self._inbox.get()) is not None:
                command()

    def _add(self, stream: _Stream, prompt: TokenisedPrompt, params: SamplingParams) -> None:
        request_id = stream.request_id or self._unused_id()
        try:
            self._engine.add_request(request_id, prompt.token_ids, params, prompt.text)
        except Exception as error:
            stream.put([error])
        else:
            stream.request_id = request_id
            self._streams[request_id] = stream

    def _unused_id(self) -> str:
        """One that no caller's own collides with."""
        ids = (f"request-{number}" for number in self._numbers)
        return next(request_id for request_id in ids if not self._engine.has_request(request_id))

    def _abort(self, request_id: str) -> None:
        chunk = self._engine.abort(request_id)
        stream = self._streams.pop(request_id, None)
        if chunk is not None and stream is not None:
            stream.put([chunk])

    def _abandon(self, stream: _Stream) -> None:
        """Nobody reads `stream` any more. Its id may belong to another request by now."""
        if stream.request_id is not None and self._streams.get(stream.request_id) is stream:
            self._abort(stream.request_id)

    def _answer(
        self, call: Callable[[], Answer], loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Answer]
    ) -> None:
        try:
            self._engine.raise_if_failed()
            result = call()
        except Exception as error:
            _call_soon(loop, partial(_settle, answer, error=error))
        else:
            _call_soon(loop, partial(_settle, answer, result=result))

    def _deliver(self, chunks: list[StreamChunk]) -> None:
        """To their streams, waking each event loop once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, StreamChunk]]] = defaultdict(list)
        for chunk in chunks:
            stream = self._streams[chunk.request_id]
            by_loop[stream.loop].append((stream, chunk))
            if chunk.finished:
                del self._streams[chunk.request_id]
        for loop, items in by_loop.items():
            if not _call_soon(loop, partial(_put_each, items)):
                for stream, _ in items:
                    self._abandon(stream)


class _Stream:
    """One request's items, on their way to the event loop that reads them."""

    def __init__(self, request_id: str | None) -> None:
        self.request_id = request_id  # None: made when the engine takes it
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[Item] = asyncio.Queue()

    def put(self, items: list[Item]) -> None:
        _call_soon(self.loop, partial(_put_each, [(self, item) for item in items]))


def _put_each(items: Sequence[tuple[_Stream, Item]]) -> None:
    for stream, item in items:
        stream.items.put_nowait(item)


def _settle(answer: asyncio.Future[Any], result: object = None, error: Exception | None = None) -> None:
    if answer.cancelled():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> bool:
    """Has `loop` make `call`; False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True
