"""Timing of stages: all ranks of a model in this process, a thread each, to fill a wave table.

The weights are random, and of each kind of layer only as many are made as keep them from lying in a cache; everything
else is what the engine runs: the decoder's shards and kernels, and shared memory between the ranks. So a model need not
be loaded to be measured, and all ranks compute at the same time, as they do in the engine.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from emucxl import resources
from emucxl.closing import WithBlock
from emucxl.shared_memory import SharedSegment, empty_segment_fd
from interlace.engine.weaving.cold_layers import cold_layers, formats_of_layers, with_layers
from interlace.engine.weaving.random_weights import RandomWeights
from interlace.engine.weaving.rank_stages import RankStages
from interlace.engine.weaving.table_key import kinds_of_layers
from interlace.models.decoder import Decoder
from interlace.models.footprint import Formats
from interlace.models.matrix_reader import MADE
from interlace.models.shard import Shard
from tokenweave.communicators import NullCommunicator, ShmCommunicator, segment_bytes
from tokenweave.errors import TuneError
from tokenweave.host_timing import measure_lanes
from tokenweave.kernels import Kernels, make_kernels
from tokenweave.stage_clock import HostClock

if TYPE_CHECKING:
    from interlace.models.config import ModelConfig
    from tokenweave.communicators import Communicator
    from tokenweave.host_costs import HostCosts

JOIN_TIMEOUT_S = 600.0  # large models have gigabytes of weights to make, and GPUs kernels to compile


class ThreadedStages(WithBlock):
    """All ranks, each on a thread of its own: what `tokenweave.tune.measure_table` times. Close it when done."""

    ctas: tuple[int, ...] = ()
    num_sms = 0

    def __init__(
        self,
        config: ModelConfig,
        size: int,
        dtype: torch.dtype,
        max_tokens: int,
        quantize: str,
        formats: Formats | None,
        num_caches: int = 1,
    ) -> None:
        """`formats` are those of the model's own blocks, where `quantize` holds these; `num_caches`: of all ranks."""
        kinds = kinds_of_layers(config, Shard.all_of(config, size))
        blocks = [*formats.values()] if formats else [MADE[quantize]] if quantize in MADE else []
        dense_bytes = 1 if quantize == "fp8" else dtype.itemsize
        value_bytes = min((form.bits_per_value / 8 for form in blocks), default=dense_bytes)
        chosen = cold_layers(config, kinds, value_bytes, num_caches)
        self.layers = tuple(kinds[layer] for layer in chosen)
        self.size, self._dtype, self._max_tokens, self._quantize = size, dtype, max_tokens, quantize
        self._config, self._formats = with_layers(config, chosen), formats_of_layers(formats or {}, chosen)
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="stages")
        self._communicators: Sequence[Communicator] = ()
        self._ranks: Sequence[RankStages] = ()

    def time(self, stage: str, num_tokens: int, repeats: int, num_ctas: int = 0) -> tuple[float, ...]:
        with self._reducing(num_ctas), self._leaving(num_ctas):
            return self._on_all(lambda rank: rank.time(stage, num_tokens, repeats))

    def time_mlp(self, kind: int, num_tokens: int, repeats: int, num_ctas: int = 0) -> tuple[float, ...]:
        with self._leaving(num_ctas):
            return self._on_all(lambda rank: rank.time_mlp(kind, num_tokens, repeats))

    def time_attention(
        self, kind: int, num_seqs: int, num_new: int, num_keys: int, repeats: int
    ) -> tuple[float, ...]:
        return self._on_all(lambda rank: rank.time_attention(kind, num_seqs, num_new, num_keys, repeats))

    def time_pass(self, num_tokens: int, num_ctas: int = 0) -> tuple[float, ...]:
        with self._reducing(num_ctas):
            return self._on_all(lambda rank: rank.time_pass(num_tokens))

    def close(self) -> None:
        self._ranks = ()
        self._pool.shutdown()
        for communicator in self._communicators:
            communicator.close()
        self._communicators = ()

    @abstractmethod
    def host_costs(self) -> HostCosts:
        """Measures what the executor adds to a plan's steps."""

    @abstractmethod
    def _kernels(self, rank: int) -> Kernels:
        """The rank's kernels, new ones each time: both lanes have some."""

    @abstractmethod
    def _stages(self, decoder: Decoder) -> RankStages:
        """The stages of the rank that `decoder` is of."""

    def _inside(self, rank: int) -> AbstractContextManager[object]:
        """The context in which a thread works for `rank`."""
        return nullcontext()

    def _reducing(self, num_ctas: int) -> AbstractContextManager[object]:
        """The context in which a reduction takes so many CTAs; 0: as it comes."""
        return nullcontext()

    def _leaving(self, num_sms: int) -> AbstractContextManager[object]:
        """The context in which the products of all ranks leave so many SMs."""
        return nullcontext()

    def _start(self, communicators: Sequence[Communicator]) -> None:
        """Makes the stages of all ranks. Closes where that fails."""
        self._communicators = communicators
        try:
            made = [self._pool.submit(self._make, communicator) for communicator in communicators]
            self._ranks = [rank.result(JOIN_TIMEOUT_S) for rank in made]
        except BaseException:
            self.close()
            raise

    def _on_all(self, call: Callable[[RankStages], float]) -> tuple[float, ...]:
        @torch.inference_mode()
        def run(rank: int) -> float:
            with self._inside(rank):
                return call(self._ranks[rank])

        return tuple(
            future.result() for future in [self._pool.submit(run, rank) for rank in range(self.size)]
        )

    @torch.inference_mode()
    def _make(self, communicator: Communicator) -> RankStages:
        rank, config = communicator.rank, self._config
        with self._inside(rank):
            communicator.kernels = self._kernels(rank)
            self._join(communicator)
            communicator.reserve_activations(self._max_tokens, config.hidden_size, self._dtype)
            weights = RandomWeights(config, self._dtype, self._formats)
            decoder = Decoder(
                weights,
                Shard.of(config, rank, self.size),
                self._kernels(rank),
                communicator,
                self._dtype,
                self._max_tokens,
                self._quantize,
            )
            return self._stages(decoder)

    def _join(self, communicator: Communicator) -> None:
        """Has a communicator take its place among the others, where it needs to."""


class HostStages(ThreadedStages):
    """The ranks of this host's processor, over shared memory."""

    def __init__(
        self,
        config: ModelConfig,
        size: int,
        kernels: str,
        threads: int,
        dtype: torch.dtype,
        max_tokens: int,
        quantize: str = "none",
        formats: Formats | None = None,
    ) -> None:
        """`formats` are those of the model's own blocks, where `quantize` holds these."""
        if size > 1 and resources.num_threads() < size:
            raise TuneError(
                f"got {size} ranks on {resources.num_threads()} cores; expected a core for each: "
                "what ranks take that wait for one another's core says nothing"
            )
        super().__init__(config, size, dtype, max_tokens, quantize, formats)
        self._name, self._threads = kernels, threads
        self._segment = SharedSegment.create("interlace-tune", segment_bytes(size))
        self._symmetric_fd = empty_segment_fd("interlace-tune-activations")
        self._start([self._end_of(rank) for rank in range(size)])

    def host_costs(self) -> HostCosts:
        return measure_lanes()

    def close(self) -> None:
        super().close()
        os.close(self._symmetric_fd)
        self._segment.close()

    def _kernels(self, rank: int) -> Kernels:
        return make_kernels(self._name, self._threads)

    def _stages(self, decoder: Decoder) -> RankStages:
        decoder.communicator.kernels = make_kernels(self._name, 1)  # as beside a compute lane
        return RankStages(decoder, self.layers, self._max_tokens, HostClock(self._threads))

    def _end_of(self, rank: int) -> Communicator:
        if self.size == 1:
            return NullCommunicator()
        return ShmCommunicator(self._segment, rank, self.size, symmetric_fd=self._symmetric_fd)
