"""RankGroup: rank 0's handle on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from interlace.engine.cache.fetching import Chooser, fetch_all
from interlace.engine.cache.traffic import PassFetch, TierTraffic
from interlace.engine.ranks.follow import BATCH, END_TRACE, QUIT, REPORT, START_TRACE
from interlace.engine.ranks.guards import Owner, interrupts_deferred
from interlace.engine.ranks.processes import FAILURE_REPORT_S
from interlace.engine.ranks.runner import RankInfo, Runner, roll_call
from interlace.engine.ranks.tracing import collect_recordings, start_recording
from interlace.engine.weaving.fetch_planner import FetchPlanner
from interlace.engine.weaving.weaver import Weaver
from interlace.errors import EngineError, InterlaceError, RankFailed
from interlace.models.batch import ForwardBatch
from interlace.models.config import ModelConfig
from tokenweave.errors import CommunicatorTimeout, RankError, TraceError
from tokenweave.kernels import NativeKernels
from tokenweave.native import ThreadPool
from tokenweave.trace import Trace

if TYPE_CHECKING:
    from interlace.models.tokenizer import Tokenizer
    from tokenweave.communicators.device_wait import DeviceEvent


_log = logging.getLogger(__name__)


class StartedRanks(Protocol):
    """The ranks other than 0 that this process started: `RankProcesses` or `RankThreads`."""

    def on_failure(self, handler: Callable[[int, str], None]) -> None:
        """Have `handler` told which rank failed and why; at once if one has already."""

    def wait_for_failure(self, timeout_s: float) -> tuple[int, str] | None:
        """The first rank known to have failed and why, or None when none has within `timeout_s`."""

    def close(self) -> None:
        """End them, within a bounded time."""


class RankGroup:
    """All ranks of a job, ready to execute batches.

    Thread safety: one caller at a time.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        others: StartedRanks | None,
        sampling_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.runner, self.tokenizer, self._others = runner, tokenizer, others
        self.sampling_defaults = sampling_defaults or {}
        self.weaver = Weaver.of(runner)
        planner = FetchPlanner.of(runner) if runner.config.kv_fetch == "auto" else None
        self.fetch_chooser: Chooser = planner or fetch_all
        config = runner.config
        for tier in (
            planner.that_never_pay(self.max_model_len, config.max_num_batched_tokens) if planner else ()
        ):
            _log.warning(
                "the tier %r below the KV cache will never pay: to compute a prompt is faster than to fetch a block of "
                "it (kv_fetch='always' fetches all the same)",
                config.kv_tiers[tier],
            )
        self._failure: InterlaceError | None = None
        self._closed = False
        self._owner = Owner("group of ranks")
        self._held = ExitStack()

    @property
    def num_blocks(self) -> int:
        return self.runner.num_blocks

    @property
    def tier_capacities(self) -> list[int]:
        return self.runner.tier_capacities

    @property
    def fetched(self) -> PassFetch:
        return self.runner.fetched

    @property
    def tier_traffic(self) -> list[TierTraffic]:
        """Of this process's rank."""
        mover = self.runner.mover
        return [TierTraffic() for _ in self.tier_capacities] if mover is None else mover.traffic

    @property
    def is_storing(self) -> bool:
        """Of this process's rank: the others have as much to store, but for its share of the heads."""
        return self.runner.mover is not None and self.runner.mover.is_busy

    @property
    def pool(self) -> ThreadPool | None:
        """The native workers of this process's rank, which are idle between two batches."""
        kernels = self.runner.kernels
        return kernels.pool if isinstance(kernels, NativeKernels) else None

    @property
    def device(self) -> torch.device | None:
        """Where the logits are and are sampled; None: the host."""
        return self.runner.kernels.device if self.runner.config.device == "cuda" else None

    @property
    def max_model_len(self) -> int:
        return self.runner.max_model_len

    @property
    def model_config(self) -> ModelConfig:
        return self.runner.model_config

    def execute(self, batch: ForwardBatch, sampled: Tensor | None = None) -> Tensor:
        """Run `batch` on every rank. Returns the logits it asks for, (num_logits, vocab_size) float32.

        `sampled`: the tokens of the last pass, (num_rows,) on rank 0's device, where the batch names some by their row.

        The weaver decides where to split it, unless the batch brings a split.

        Raises:
            RankFailed: a rank died or stopped answering. The group is of no more use, and says so when called again.
        """
        with self._in_step():
            if batch.split is None and (split := self.weaver.split(batch)) is not None:
                batch = replace(batch, split=split)
            if self.runner.communicator.size > 1:
                self.runner.communicator.broadcast_bytes(BATCH + batch.to_bytes())
            return self.runner.execute(batch, sampled)

    def wait_for(self, event: DeviceEvent) -> None:
        """Returns once `event` of this rank's device has happened, as the fetch of token ids has to wait.

        Raises:
            RankFailed: a rank died or stopped answering meanwhile, or the device took longer than `timeout_s`.
        """
        with self._in_step():
            self.runner.communicator.wait_for(event)

    def describe(self) -> dict[str, object]:
        """The ranks as they are now: where, with which kernels and dtype, and their peak memory in bytes."""
        ranks = self._report()
        return {
            "ranks": [asdict(info) for info in ranks],
            "communicator": self.runner.communicator.name,
            "device": ranks[0].device,
            "dtype": ranks[0].dtype,
            "weights": ranks[0].weights,
            "kernels": ranks[0].kernels,
            "threads_per_rank": ranks[0].threads,
            "num_kv_blocks": self.num_blocks,
            "memory_per_rank_bytes": [info.peak_memory_bytes for info in ranks],
            "weights_per_rank_bytes": [info.weights_bytes for info in ranks],
            "weights_tier_per_rank_bytes": [info.weights_tier_bytes for info in ranks],
        }

    def start_trace(self) -> None:
        """Record when each step of each batch runs, on every rank, until `end_trace`.

        Raises:
            TraceError: a trace is being recorded.
        """
        if self.runner.recorder is not None:
            raise TraceError("a trace is being recorded: end it before the next one")
        with self._in_step():
            if self.runner.communicator.size > 1:
                self.runner.communicator.broadcast_bytes(START_TRACE)
            start_recording(self.runner)

    def end_trace(self) -> Trace:
        """Ends the recording; returns the steps of every rank since `start_trace`.

        Raises:
            TraceError: no trace is being recorded.
        """
        if self.runner.recorder is None:
            raise TraceError("no trace is being recorded: start one first")
        with self._in_step():
            if self.runner.communicator.size > 1:
                self.runner.communicator.broadcast_bytes(END_TRACE)
            return Trace.join(*collect_recordings(self.runner))

    def close(self) -> None:
        """End every rank. Calling it again does nothing, nor does calling it in a fork of the process."""
        if self._closed or self._owner.is_elsewhere:
            return
        self._closed = True
        communicator = self.runner.communicator
        if self._failure is None and communicator.size > 1:
            with suppress(Exception):  # a rank that cannot be told notices that this process is gone
                communicator.broadcast_bytes(QUIT)
        if self._others is not None:
            self._others.close()
        with suppress(Exception):
            self.runner.close()
        with suppress(
            Exception
        ):  # a tensor in shared memory is still alive: the memory goes with the last one
            self._held.close()

    def on_close(self, held: ExitStack) -> None:
        """Closes `held` last: the ranks need it as long as they live."""
        self._held = held

    def _report(self) -> list[RankInfo]:
        with self._in_step():
            if self.runner.communicator.size > 1:
                self.runner.communicator.broadcast_bytes(REPORT)
            return roll_call(self.runner.communicator, self.runner.describe())

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Guards one command: every rank gets through it, or the group has failed."""
        self._owner.check()
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise EngineError("the engine is closed: make a new LLM")
        with interrupts_deferred():
            try:
                yield
            except BaseException as error:
                self._failure = self._explain(error)
                with suppress(Exception):
                    self.runner.communicator.abort(str(self._failure))
                raise self._failure from error

    def _explain(self, error: BaseException) -> InterlaceError:
        """Returns an error that names the rank that failed, as far as is known."""
        if isinstance(error, torch.OutOfMemoryError):
            return EngineError(
                f"rank 0 ran out of memory in a step: lower max_num_batched_tokens, or leave the KV cache less "
                f"(kv_cache_gb, num_kv_blocks). {str(error).partition(chr(10))[0]}"
            )
        if not isinstance(error, RankError | CommunicatorTimeout):
            return EngineError(f"rank 0 failed in a step: {type(error).__name__}: {error}")
        known = self._others.wait_for_failure(FAILURE_REPORT_S) if self._others is not None else None
        if known is not None:
            return RankFailed(known[1], known[0])
        return RankFailed(str(error), getattr(error, "rank", None))
