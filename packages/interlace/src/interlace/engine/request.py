"""Request: a sequence with what its owner sees of it: text, reasons, logprobs and times."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

from interlace.engine.chunk import StreamChunk
from interlace.engine.output import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from interlace.engine.sampler import SampledToken
from interlace.engine.sequence import Sequence
from interlace.engine.text import TextAssembler
from interlace.engine.values import shown
from interlace.errors import InterlaceError, RequestError, RequestFailed


def as_request_id(request_id: Any) -> str:
    """`request_id` as a plain string: it is looked up in steps that all requests share. Raises RequestError."""
    if not isinstance(request_id, str) or not request_id:
        raise RequestError(
            f"request_id={shown(request_id)}: expected a string of at least one character; "
            f"leave it out to have one made"
        )
    return str.__str__(request_id)


class Request:
    """From arrival to its last chunk. `eos_ids` end it, unless its parameters ignore them; `stop_tokens` always do."""

    def __init__(
        self,
        sequence: Sequence,
        prompt: str | None,
        assembler: TextAssembler,
        eos_ids: SequenceOf[int],
        stop_tokens: Mapping[int, str | int],
    ) -> None:
        self.sequence = sequence
        self.finish_reason: FinishReason | None = None
        self._prompt = prompt
        self._assembler = assembler
        self._ends = frozenset(() if sequence.params.ignore_eos else eos_ids)
        self._stop_tokens = stop_tokens
        self._stop_reason: str | int | None = None
        self._logprobs: list[dict[int, Logprob]] | None = None if sequence.params.logprobs is None else []
        self._arrival_time = time.time()
        self._arrival_s = time.perf_counter()
        self._first_token_s: float | None = None

    def accept(self, sampled: SampledToken, now_s: float) -> StreamChunk:
        """Takes its next token; decides whether that was the last one."""
        if self._first_token_s is None:
            self._first_token_s = now_s
        self.sequence.append_token(sampled.token_id)
        if self._logprobs is not None and sampled.logprobs is not None:
            self._logprobs.append(sampled.logprobs)
        text = self._read(sampled.token_id)
        return self._chunk(text, [sampled.token_id], sampled.logprobs, now_s)

    def abort(self, now_s: float) -> StreamChunk:
        """Ends it where it is; what was held back of its text is given out."""
        self.finish_reason = "abort"
        return self._chunk(self._assembler.finish(), [], None, now_s)

    def fail(self, error: Exception, now_s: float) -> StreamChunk:
        """Ends it because of `error`, with the text that is out already."""
        self.finish_reason = "error"
        cause = str(error) if isinstance(error, InterlaceError) else f"{type(error).__name__}: {error}"
        output = self._output("error", now_s)
        failure = RequestFailed(f"request {self.sequence.request_id!r} failed: {cause}", [output])
        failure.__cause__ = error
        return StreamChunk(self.sequence.request_id, "", output=output, error=failure)

    def _read(self, token_id: int) -> str:
        """The text that `token_id` adds, setting the finish reason if it ends the request."""
        if token_id in self._ends or token_id in self._stop_tokens:
            self.finish_reason = "stop"
            self._stop_reason = None if token_id in self._ends else self._stop_tokens[token_id]
            return self._assembler.finish()
        text = self._assembler.push(token_id)
        if self.sequence.is_full and self._assembler.stopped_by is None:
            self.finish_reason = "length"
            text += self._assembler.finish()
        if self._assembler.stopped_by is not None:
            self.finish_reason = "stop"
            self._stop_reason = self._assembler.stopped_by
        return text

    def _chunk(
        self, text: str, token_ids: list[int], logprobs: dict[int, Logprob] | None, now_s: float
    ) -> StreamChunk:
        return StreamChunk(
            self.sequence.request_id,
            text,
            token_ids,
            None if logprobs is None else [logprobs],
            None if self.finish_reason is None else self._output(self.finish_reason, now_s),
        )

    def _output(self, reason: FinishReason, now_s: float) -> RequestOutput:
        sequence = self.sequence
        completion = CompletionOutput(
            index=0,
            text=self._assembler.text,
            token_ids=sequence.output_ids.tolist(),
            logprobs=self._logprobs,
            finish_reason=reason,
            stop_reason=self._stop_reason,
        )
        prompt_ids = sequence.tokens[: sequence.num_prompt].tolist()
        return RequestOutput(
            sequence.request_id, self._prompt, prompt_ids, [completion], self._metrics(now_s)
        )

    def _metrics(self, now_s: float) -> RequestMetrics:
        sequence, scheduled_s, first_s = self.sequence, self.sequence.first_scheduled_s, self._first_token_s
        return RequestMetrics(
            arrival_time=self._arrival_time,
            queue_s=_since(self._arrival_s, scheduled_s),
            time_to_first_token_s=_since(self._arrival_s, first_s),
            total_s=now_s - self._arrival_s,
            num_prompt_tokens=sequence.num_prompt,
            num_output_tokens=sequence.num_output,
            prefill_tokens_per_second=_rate(sequence.num_prompt - sequence.num_cached, scheduled_s, first_s),
            decode_tokens_per_second=_rate(sequence.num_output - 1, first_s, now_s),
            num_preemptions=sequence.num_preemptions,
            num_cached_tokens=sequence.num_cached,
            num_fetched_tokens=sequence.num_fetched,
            fetch_s=sequence.fetch_s,
            fetch_waited_s=sequence.fetch_waited_s,
        )


def _since(start_s: float, moment_s: float | None) -> float | None:
    return None if moment_s is None else moment_s - start_s


def _rate(count: int, start_s: float | None, end_s: float | None) -> float | None:
    if start_s is None or end_s is None or end_s <= start_s or count <= 0:
        return None
    return count / (end_s - start_s)
