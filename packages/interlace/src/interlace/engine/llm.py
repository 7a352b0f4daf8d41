"""LLM: the engine as plain function calls; and FrontEnd, the part of it that AsyncLLM shares.

Thread safety: any thread may call. One lock serialises the steps; whoever waits for a token while nobody steps takes
the next step, for all callers. An error in a step reaches every waiting call and every later one.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from interlace.engine.chunk import StreamChunk
from interlace.engine.config import EngineConfig, EngineOptions
from interlace.engine.engine import Engine
from interlace.engine.output import EngineStats, RequestOutput
from interlace.engine.progress import progress_bar
from interlace.engine.prompts import (
    ChatOptions,
    Conversation,
    Prompt,
    TokenisedPrompt,
    as_conversations,
    as_prompts,
    one_for_each,
    tokenise,
)
from interlace.engine.protocols import Ranks, TokenizerLike
from interlace.engine.ranks.guards import Owner, interrupts_deferred
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import ConfigError, EngineError, RequestFailed, SamplingError
from tokenweave.trace import check_writable

Mailbox = deque[StreamChunk]


class FrontEnd:
    """Ranks and an engine over them: the part that LLM and AsyncLLM share."""

    def __init__(self, model: str, *, ranks: Ranks | None = None, **options: Unpack[EngineOptions]) -> None:
        """Starts the ranks and loads `model` (a path, a hub id or an alias); EngineConfig describes the options.

        `ranks` that are up already are used instead of starting any.

        Raises:
            EngineError: a bad option, or ranks that cannot be started.
            ModelError: the model cannot be found or read.
            BlockTraceError: the file of `record_block_trace` cannot be written.
        """
        self._owner = Owner(type(self).__name__)
        self.config = EngineConfig.from_options(model, options)
        self._ranks = ranks if ranks is not None else _start(self.config)
        self._engine = Engine(self._ranks, self.config)

    @property
    def tokenizer(self) -> TokenizerLike:
        return self._ranks.tokenizer

    @property
    def max_model_len(self) -> int:
        """The longest sequence served, in tokens of prompt and output."""
        return self._ranks.max_model_len

    @cached_property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """The SamplingParams that the model's files recommend; none with `generation_config="none"`.

        A request without parameters has these. Others have their own alone:
        `SamplingParams(**{**llm.sampling_defaults, "max_tokens": 100})` joins the two.

        Raises:
            ConfigError: a value there is out of range.
        """
        given = self._ranks.sampling_defaults if self.config.generation_config == "auto" else {}
        try:
            SamplingParams(**given)
        except SamplingError as error:
            raise ConfigError(
                f"{self.config.model}: its recommended sampling cannot be used: {error}. Leave it out "
                f"(generation_config='none', --generation-config none) or correct its generation_config.json"
            ) from error
        return dict(given)

    def _params_for_each(self, given: Any, num_prompts: int) -> list[SamplingParams]:
        """The parameters of each prompt; where none are given, the model's own."""
        if given is None:
            given = SamplingParams(**self.sampling_defaults)
        return one_for_each(given, num_prompts)

    def stats(self) -> EngineStats:
        """The engine as it is now: requests, blocks, rates, totals. Any thread may ask."""
        return self._engine.stats()

    def _closed_error(self) -> EngineError:
        return EngineError(f"this {type(self).__name__} is closed; make a new one")


class LLM(FrontEnd):
    """A model, ready to generate. `with LLM("smollm2", tp=2) as llm: llm.generate("Hello")`."""

    def __init__(self, model: str, *, ranks: Ranks | None = None, **options: Unpack[EngineOptions]) -> None:
        super().__init__(model, ranks=ranks, **options)
        self._lock = threading.Lock()
        self._mailboxes: dict[str, Mailbox] = {}
        self._abandoned: deque[str] = deque()  # filled by generators that may be collected inside a step
        self._numbers = itertools.count()
        self._is_closed = False

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Outputs for one text or many texts or lists of token ids, in their order, generated all together.

        On Ctrl-C the outstanding requests are aborted and the LLM stays usable.

        Raises:
            RequestError: a prompt that is empty, too long, or not of this vocabulary. No request is run then.
            RequestFailed: a request failed in a step; its `outputs` has what all of them came to.
            EngineError: the KV cache cannot hold a request, a rank failed, or the LLM is closed.
        """
        return self._run(as_prompts(prompts), sampling_params, progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **chat: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """The model's next turn in one conversation or in many, through its chat template. Else as `generate`.

        ChatOptions says what the template can be given: `tools`, `chat_template_kwargs`, a template in its place.
        """
        return self._run(as_conversations(messages), sampling_params, progress, chat)

    def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Iterator[StreamChunk]:
        """One text, list of token ids or conversation, a chunk per token; closing the iterator aborts it.

        Raises as `generate`, at the call.
        """
        tokenised = tokenise(self.tokenizer, prompt, chat)
        (params,) = self._params_for_each(sampling_params, 1)
        self._owner.check()
        with self._lock:
            self._engine.check_request(tokenised.token_ids, params)
        return self._stream(tokenised, params)

    def reset_prefix_cache(self) -> None:
        """Has no request find what was computed before this call."""
        self._owner.check()
        with self._lock:
            self._engine.reset_prefix_cache()

    def describe(self) -> dict[str, object]:
        """The ranks: where they run, communicator, dtype, threads, memory."""
        self._owner.check()
        with self._lock:
            self._engine.raise_if_failed()
            return self._ranks.describe()

    @contextmanager
    def trace(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Records when each step of each batch inside runs, on every rank, and writes it to `path` at the end.

        ui.perfetto.dev and `interlace trace summary` read the file. It is written whole or not at all.

        Raises:
            TraceError: the file cannot be written (checked first), or another trace is being recorded.
        """
        self._owner.check()
        file = Path(path)
        check_writable(file)
        with self._lock:
            self._engine.raise_if_failed()
            self._ranks.start_trace()
        try:
            yield
        finally:
            with self._lock:
                trace = self._ranks.end_trace()
            trace.write(file)

    def close(self) -> None:
        """Ends the ranks. Calls that are waiting, and later ones, raise EngineError. In a fork it does nothing."""
        if self._owner.is_elsewhere:
            return
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._engine.fail(self._closed_error())
            self._ranks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        prompts: Sequence[object],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        progress: bool,
        chat: ChatOptions | None = None,
    ) -> list[RequestOutput]:
        self._owner.check()
        each = self._params_for_each(sampling_params, len(prompts))
        tokenised = [tokenise(self.tokenizer, prompt, chat) for prompt in prompts]
        mailbox: Mailbox = deque()
        request_ids: list[str] = []
        outputs: dict[str, RequestOutput] = {}
        failures: list[RequestFailed] = []
        try:
            self._submit(tokenised, each, mailbox, request_ids)
            with progress_bar(len(request_ids), progress) as advance:
                while len(outputs) < len(request_ids):
                    chunk = self._next(mailbox)
                    if chunk.output is not None:
                        outputs[chunk.request_id] = chunk.output
                        advance()
                    if chunk.error is not None:
                        failures.append(chunk.error)
        finally:
            self._abandon(request_ids)
        in_order = [outputs[request_id] for request_id in request_ids]
        if failures:
            raise _all_told(failures, in_order) from failures[0].__cause__
        return in_order

    def _stream(self, prompt: TokenisedPrompt, params: SamplingParams) -> Iterator[StreamChunk]:
        mailbox: Mailbox = deque()
        request_ids: list[str] = []
        try:
            self._submit([prompt], [params], mailbox, request_ids)
            while True:
                chunk = self._next(mailbox)
                if chunk.error is not None:
                    raise chunk.error
                yield chunk
                if chunk.finished:
                    return
        finally:
            self._abandon(request_ids)

    def _submit(
        self,
        prompts: list[TokenisedPrompt],
        params: list[SamplingParams],
        mailbox: Mailbox,
        request_ids: list[str],
    ) -> None:
        """Queues every request, or none: they are all checked first."""
        with self._lock, interrupts_deferred():
            self._sweep()
            for prompt, param in zip(prompts, params, strict=True):
                self._engine.check_request(prompt.token_ids, param)
            for prompt, param in zip(prompts, params, strict=True):
                request_id = f"request-{next(self._numbers)}"
                self._engine.add_request(request_id, prompt.token_ids, param, prompt.text)
                self._mailboxes[request_id] = mailbox
                request_ids.append(request_id)

    def _next(self, mailbox: Mailbox) -> StreamChunk:
        """The next chunk in `mailbox`, stepping the engine until there is one."""
        self._owner.check()  # a generator may go on in a fork
        while True:
            with self._lock:
                if mailbox:
                    return mailbox.popleft()
                with interrupts_deferred():
                    self._sweep()
                    for chunk in self._engine.step():
                        self._mailboxes[chunk.request_id].append(chunk)

    def _abandon(self, request_ids: list[str]) -> None:
        """Marks requests that nobody waits for. The thread that holds the lock sweeps them before its next step.

        That may be this thread, inside a step, when a generator is collected there.
        """
        self._abandoned.extend(request_ids)
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def _sweep(self) -> None:
        """Aborts abandoned requests that have not ended, so that they hold no block in the next step."""
        while self._abandoned:
            request_id = self._abandoned.popleft()
            self._mailboxes.pop(request_id, None)
            self._engine.abort(request_id)


def _start(config: EngineConfig) -> Ranks:
    from interlace.engine.ranks.launch import start

    return start(config)


def _all_told(failures: list[RequestFailed], outputs: list[RequestOutput]) -> RequestFailed:
    """Returns one error for a call of which some requests failed."""
    count = "" if len(outputs) == 1 else f"{len(failures)} of {len(outputs)} requests failed: "
    return RequestFailed(f"{count}{failures[0]}", outputs)
