"""Engine: the loop. Requests go in, `step` runs one forward pass over all of them, chunks come out.

Thread safety: none; one thread owns an engine. LLM and AsyncLLM are its safe fronts.

After the ranks have failed in a step the engine serves nothing more: every later call raises that same error.
A failure of one request (its row of logits is NaN, its text cannot be decoded) ends that request alone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlace.cache.recorder import BlockTraceRecorder
from interlace.engine.batch_builder import build_batch
from interlace.engine.cache.names import Roots, TextNames
from interlace.engine.cache.tiers import Tiers
from interlace.engine.chunk import StreamChunk
from interlace.engine.config import EngineConfig
from interlace.engine.meter import Meter
from interlace.engine.output import EngineStats
from interlace.engine.protocols import Ranks
from interlace.engine.request import Request, as_request_id
from interlace.engine.sampler import HostSampler, Sampled, SampledToken, Sampler
from interlace.engine.sampling_params import SamplingParams
from interlace.engine.scheduler import Scheduler
from interlace.engine.sequence import Sequence, max_total_tokens
from interlace.engine.text import TextAssembler
from interlace.engine.values import as_int, shown
from interlace.errors import EngineError, PromptTooLong, RequestError
from tokenweave.sampling import mix64

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IssuedPass:
    """A forward pass that has run, or that a device is running."""

    num_prompt: int  # tokens of prompts, or of texts that are computed again
    sequences: list[Sequence]  # those that get a token
    sampled: Sampled


class Engine:
    """Continuous batching over `ranks`, which execute batches and know the model and its tokenizer."""

    def __init__(self, ranks: Ranks, config: EngineConfig) -> None:
        self.ranks = ranks
        self.config = config
        self.scheduler = Scheduler(
            ranks.num_blocks, config.max_num_seqs, config.max_num_batched_tokens, make_tiers(ranks, config)
        )
        self._requests: dict[str, Request] = {}
        self._num_requests = self._num_cached_tokens = 0
        self._eos_ids = end_token_ids(ranks)
        self._roots = Roots() if config.prefix_cache else None
        self._sampler = make_sampler(ranks, config.max_num_seqs)
        self._following: IssuedPass | None = None  # the pass behind the last one whose tokens were given out
        self._meter = Meter()
        self._failure: Exception | None = None
        path = config.record_block_trace
        self._recorder = None if path is None else BlockTraceRecorder(os.fspath(path))

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams,
        prompt: str | None = None,
    ) -> None:
        """Queues a request; its chunks come out of later steps.

        Raises:
            RequestError: empty prompt, foreign token ids, or an id that is in use or no string.
            PromptTooLong: no room in the context for even one token after the prompt.
            CacheTooSmall: the request could not finish even with the whole cache to itself.
        """
        self.raise_if_failed()
        request_id = as_request_id(request_id)
        if self.has_request(request_id):
            raise RequestError(
                f"request id {request_id!r} is in use: expected one that no unfinished request has"
            )
        token_ids = self.check_request(prompt_token_ids, params)
        seed = params.seed if params.seed is not None else self._derived_seed()
        limit = self.ranks.max_model_len
        sequence = Sequence(request_id, token_ids, params, seed, limit, self._names_of(token_ids, params))
        decoder = self.ranks.tokenizer.stream(params.skip_special_tokens, token_ids)
        assembler = TextAssembler(decoder, params.stop_strings)
        request = Request(sequence, prompt, assembler, self._eos_ids, self._stop_tokens(params))
        self.scheduler.add(sequence)  # nothing fails from here on: what is scheduled has its request
        self._num_requests += 1
        self._requests[request_id] = request
        if self._recorder is not None:
            self._recorder.begin(request_id, sequence.num_prompt, sequence.names_before(sequence.num_prompt))

    def reset_prefix_cache(self) -> None:
        """Has no request find what was computed before this call."""
        self.raise_if_failed()
        self.scheduler.forget()

    def _names_of(self, token_ids: list[int], params: SamplingParams) -> TextNames | None:
        """Names for the blocks of a request; None where nothing is to be found or kept."""
        if self._roots is None:
            return None
        length_kind = self.ranks.model_config.length_kind(len(token_ids))
        return TextNames(self._roots.of(params.cache_salt, length_kind))

    def _stop_tokens(self, params: SamplingParams) -> dict[int, str | int]:
        """The tokens that end a request, with the reason to give: its ids, and strings that are special tokens.

        Such a string may be hidden from the text, where it would not be found.
        """
        tokens: dict[int, str | int] = {token: token for token in params.stop_ids}
        for string in params.stop_strings:
            token = self.ranks.tokenizer.special_token_id(string)
            if token is not None:
                tokens.setdefault(token, string)
        return tokens

    def has_request(self, request_id: str) -> bool:
        """Returns True where an unfinished request has this id."""
        return request_id in self._requests

    def check_request(self, prompt_token_ids: Any, params: SamplingParams) -> list[int]:
        """The prompt as Python's own integers. Raises what `add_request` would, adding nothing."""
        self.raise_if_failed()
        token_ids = as_token_ids(prompt_token_ids, self.ranks.model_config.vocab_size)
        limit = self.ranks.max_model_len
        if len(token_ids) >= limit:
            raise PromptTooLong(
                f"the prompt has {len(token_ids)} tokens; the context holds {limit}, at least one of them "
                f"generated: shorten the prompt or raise max_model_len"
            )
        self.scheduler.check_fits(max_total_tokens(len(token_ids), params, limit))
        return token_ids

    def abort(self, request_id: str) -> StreamChunk | None:
        """Ends a request wherever it is, between two steps. Its last chunk; None if it had ended already."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        try:
            return request.abort(time.perf_counter())
        except Exception as error:
            return request.fail(error, time.perf_counter())
        finally:
            self._remove(request)

    def step(self) -> list[StreamChunk]:
        """The tokens of one forward pass: a chunk for each request that got one. Empty when there is nothing to do.

        A device is given the pass behind it first, so that it has work while the host waits for these tokens and makes
        the next pass ready. Its sequences go on with tokens that the host does not know yet; what it computes for one
        that has ended with this pass is dropped.
        """
        self.raise_if_failed()
        try:
            issued = self._following or self._issue(None)
            if issued is None:
                return []
            self._following = None if self.ranks.device is None else self._issue(issued.sampled.tokens)
            chunks = self._deliver(issued)
            if not self._requests:
                self._following = None
            return chunks
        except Exception as failure:
            self._failure = failure
            raise
        except BaseException:
            self._failure = EngineError("a step of the engine was interrupted half-way; make a new one")
            raise

    def stats(self) -> EngineStats:
        scheduler, tiers = self.scheduler, self.scheduler.tiers
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_free_blocks=scheduler.blocks.num_free,
            num_kept_blocks=scheduler.blocks.num_kept,
            num_blocks=scheduler.blocks.num_blocks,
            prefill_tokens_per_second=self._meter.prefill_tokens_per_second,
            decode_tokens_per_second=self._meter.decode_tokens_per_second,
            num_steps=self._meter.num_steps,
            num_prompt_tokens=self._meter.num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_output_tokens=self._meter.num_output_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_finished=self._num_requests - len(self._requests),
            tiers=() if tiers is None else tiers.stats(self.config.kv_tiers, self.ranks.tier_traffic),
        )

    def check(self) -> None:
        """Raises EngineError if a KV block is leaked or owned twice."""
        requests = self._requests.values()
        self.scheduler.blocks.check(request.sequence.table.blocks.tolist() for request in requests)
        if self.scheduler.tiers is not None:
            self.scheduler.tiers.index.check()

    def fail(self, failure: Exception) -> None:
        """Makes every later call raise `failure`. Nothing more is recorded."""
        self._failure = failure
        if self._recorder is not None:
            self._recorder.close()

    def raise_if_failed(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _issue(self, known_there: Tensor | None) -> IssuedPass | None:
        """Starts the next pass; None where there is nothing to compute.

        `known_there` are the tokens that the last pass gave, where the host does not know them yet.
        """
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return None
        sequences = [item.sequence for item in scheduled if item.yields_token]
        num_prompt = sum(n for s, _, n in scheduled if n > 1 or s.num_generated == 0)
        logits = self.ranks.execute(build_batch(scheduled, self.scheduler.take_moves()), known_there)
        missed = self.scheduler.commit(scheduled, self.ranks.fetched)
        if missed:
            kept = [row for row, sequence in enumerate(sequences) if sequence not in missed]
            sequences, logits = [sequences[row] for row in kept], logits[kept]
        sampled = self._sampler.sample(logits, sequences)
        if sampled.tokens is not None:
            for row, sequence in enumerate(sequences):
                sequence.expect_token(row)
        return IssuedPass(num_prompt, sequences, sampled)

    def _deliver(self, issued: IssuedPass) -> list[StreamChunk]:
        """Waits for the tokens of a pass, and gives each to its request. Those of requests that ended are dropped."""
        found = issued.sampled.fetch()
        now_s = time.perf_counter()
        chunks = []
        for sequence, token in zip(issued.sequences, found, strict=True):
            request = self._requests.get(sequence.request_id)
            if request is None or request.sequence is not sequence:
                continue
            if sequence.num_output == 0:
                self._num_cached_tokens += sequence.num_cached
            if isinstance(token, Exception):
                self.scheduler.withdraw(sequence)
            chunks.append(_advance(request, token, now_s))
            if request.finish_reason is not None:
                self._remove(request)
        self._meter.record(now_s, issued.num_prompt, len(chunks))
        return chunks

    def _remove(self, request: Request) -> None:
        del self._requests[request.sequence.request_id]
        self.scheduler.remove(request.sequence)
        self._sampler.forget(request.sequence)
        if self._recorder is not None:
            self._recorder.end(request.sequence.request_id, request.sequence.num_output)

    def _derived_seed(self) -> int:
        return mix64(mix64(self.config.seed) + self._num_requests)


def _advance(request: Request, token: SampledToken | Exception, now_s: float) -> StreamChunk:
    """The chunk of `token`; where there is none, or the request cannot take it, the one that ends the request."""
    try:
        if isinstance(token, Exception):
            raise token
        return request.accept(token, now_s)
    except Exception as error:
        return request.fail(error, now_s)


def make_tiers(ranks: Ranks, config: EngineConfig) -> Tiers | None:
    """Returns the tiers below the KV cache of `ranks`; None where there are none."""
    if not ranks.tier_capacities:
        return None
    return Tiers(
        ranks.tier_capacities,
        config.kv_tier_policy,
        config.kv_tier_write,
        lambda: ranks.is_storing,
        ranks.fetch_chooser,
    )


def make_sampler(ranks: Ranks, max_num_seqs: int) -> Sampler:
    """Returns a sampler where the logits of `ranks` are."""
    if ranks.device is None:
        return HostSampler(ranks.pool)
    from interlace.engine.device_sampler import SamplerOnDevice

    return SamplerOnDevice(ranks.model_config.vocab_size, max_num_seqs, ranks.device, ranks.wait_for)


def end_token_ids(ranks: Ranks) -> tuple[int, ...]:
    """The ids that end a text: those of the model's configuration, and those of its tokenizer."""
    named = dict.fromkeys((*ranks.model_config.eos_token_ids, *ranks.tokenizer.end_token_ids))
    vocab_size = ranks.model_config.vocab_size
    if foreign := [token for token in named if token >= vocab_size]:
        _log.warning(
            "the model's files name %s as the end of a text, outside its vocabulary of %d tokens: left out; "
            "if its texts do not end, set stop_token_ids",
            ", ".join(map(str, foreign)),
            vocab_size,
        )
    return tuple(token for token in named if token < vocab_size)


def as_token_ids(token_ids: Any, vocab_size: int) -> list[int]:
    """`token_ids` as a list. Raises RequestError unless it is a non-empty collection of ids of the vocabulary."""
    if isinstance(token_ids, str) or not isinstance(token_ids, Collection):
        raise RequestError(f"got a prompt of type {type(token_ids).__name__}: expected a list of token ids")
    if len(token_ids) == 0:
        raise RequestError("the prompt is empty: expected at least one token; pass some text or a token id")
    numbers = []
    for token in token_ids:
        number = token if type(token) is int else as_int(token)
        if number is None or not 0 <= number < vocab_size:
            raise RequestError(
                f"token id {shown(token)} in the prompt: expected an integer from 0 to {vocab_size - 1} "
                f"(the model's vocabulary); tokenise the prompt with this model's tokenizer"
            )
        numbers.append(number)
    return numbers
