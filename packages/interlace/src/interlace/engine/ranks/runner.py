"""Runner: one rank's share of the work. Its shard of the model, its part of the KV cache, its communicator.

Every rank builds a Runner and executes the same batches in the same order; rank 0's caller decides which.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interlace.engine.cache.kv_cache import KVCache
from interlace.engine.cache.layout import CacheLayout
from interlace.engine.cache.sizing import affordable_blocks, notices_of
from interlace.engine.cache.tier_memory import SlotMemory
from interlace.engine.cache.tier_mover import TierMover
from interlace.engine.cache.traffic import NOTHING_FETCHED
from interlace.engine.config import EngineConfig
from interlace.engine.dtypes import choice as dtypes
from interlace.engine.ranks.device_executor import DeviceExecutor
from interlace.engine.ranks.graph_replayer import GraphReplayer, graphs_on
from interlace.engine.ranks.messages import messages_of_all
from interlace.engine.ranks.replayer import Replayer, run_plan
from interlace.engine.ranks.trial_pass import bytes_of_a_pass, told_of_device
from interlace.engine.ranks.weights_tier import WeightsTier
from interlace.engine.weaving.gpu_prices import GpuJob, prepare_gpus
from interlace.errors import EngineError
from interlace.models.batch import ForwardBatch
from interlace.models.config import ModelConfig
from interlace.models.decoder import Decoder
from interlace.models.fed_tokens import FedTokens
from interlace.models.footprint import formats_of, layers_bytes, resolve_quantize, weights_name
from interlace.models.shard import Shard
from interlace.models.sources import LoadedModel
from tokenweave.communicators import Communicator
from tokenweave.exchange import Exchange, measure_exchange
from tokenweave.execute import Observer
from tokenweave.kernels import blocks_for, make_kernels
from tokenweave.lanes import LaneExecutor
from tokenweave.plan import Op, Plan
from tokenweave.trace import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlace.models.weights import WeightSource
    from tokenweave.graphs import GraphBackend

_progress = logging.getLogger("interlace.progress")


@dataclass(frozen=True)
class RankInfo:
    """A rank's description of itself, for the other ranks."""

    rank: int
    host: str
    pid: int
    device: str  # "cpu", or the name of its GPU
    threads: int
    kernels: str
    dtype: str
    weights: str  # their name: see `footprint.weights_name`
    num_kv_blocks: int
    peak_memory_bytes: int  # largest resident set so far
    weights_bytes: int  # in local memory
    weights_tier_bytes: int  # in the tier of weights
    num_tier_slots: list[int | None]  # blocks that each tier holds; None: any number


class Runner:
    """One rank, ready to execute batches.

    Thread safety: none; `execute` is a collective call, so every rank must make it in the same order.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        communicator: Communicator,
        ranks_on_host: int = 1,
        on_loaded: Callable[[], None] | None = None,
    ) -> None:
        """Load this rank's shard, agree with the other ranks on the size of the KV cache, and allocate it."""
        self.config, self.communicator, self.kernels = config, communicator, communicator.kernels
        are_lanes_threads = config.executor == "lanes" and config.device != "cuda"
        if are_lanes_threads:  # transfers run beside the compute lane, and kernels take one caller
            communicator.kernels = make_kernels(self.kernels.name, threads=1, device=self.kernels.device)
        self.model_config = model.config
        torch.set_num_threads(self.kernels.threads)
        quantize = resolve_quantize(config.quantize, config.dtype, model.weights)
        self.dtype = dtypes.agree(config.dtype, quantize, model.weights, self.kernels, communicator)
        self.weights_name = weights_name(model.weights, quantize)
        self.max_model_len = resolve_max_model_len(config, model.config)
        shard = Shard.of(model.config, communicator.rank, communicator.size)
        self.weights_tier = self._open_weights_tier(model.weights, shard, quantize)
        with told_of_device(self.kernels.device, model.weights, shard, self.dtype, quantize):
            self.decoder = Decoder(
                model.weights,
                shard,
                self.kernels,
                communicator,
                self.dtype,
                self.max_model_len,
                quantize,
                self.weights_tier,
            )
        if config.device == "cuda":
            self.decoder.fed = FedTokens(config.max_num_seqs, self.kernels.device)
        layout = CacheLayout(model.config.num_layers, self.decoder.heads, self.dtype)
        of_weights = () if self.weights_tier is None else self.weights_tier.notices
        self.notices = (
            *self.decoder.notices, *of_weights, *notices_of(config, self.max_model_len, layout)
        )  # fmt: skip
        wait_until_loaded(communicator)
        num_tokens, hidden_size = config.max_num_batched_tokens, model.config.hidden_size
        communicator.reserve_activations(num_tokens, hidden_size, self.dtype)
        communicator.prepare(hidden_size, self.dtype, num_tokens, *self.decoder.norms)
        self.gpu_prices = prepare_gpus(
            GpuJob(config, model.config, communicator, self.kernels, self.dtype, self.weights_name)
        )
        pass_bytes = bytes_of_a_pass(self.decoder, layout, config.max_num_batched_tokens, config.max_num_seqs)
        backend = graphs_on(self.kernels) if config.replay else None
        if backend is not None:
            pass_bytes *= 2  # graphs keep memory for a pass beside what other passes take
        self.num_blocks = affordable_blocks(
            config, self.max_model_len, layout, ranks_on_host, self.kernels.device, pass_bytes
        )
        self._slots = SlotMemory(config.tier_specs, layout.block_bytes, communicator.rank, communicator.size)
        self.notices = (*self.notices, *self._slots.notices)
        self.ranks = roll_call(communicator, self.describe())
        self.num_blocks = min(info.num_kv_blocks for info in self.ranks)
        self.ranks = [replace(info, num_kv_blocks=self.num_blocks) for info in self.ranks]
        self.tier_capacities = common_capacities(self.ranks)
        self.cache = KVCache(self.kernels, layout, self.num_blocks)
        self.mover = self._make_mover(layout)
        self.fetched = NOTHING_FETCHED  # of the last pass; failed: on any rank
        # Told of every step of every batch, when set; of those on a GPU by `streams.collect`.
        self.observe: Observer | None = None
        self.recorder: Recorder | None = None  # in its place while a trace is recorded
        self.exchange = self._measure_exchange()
        cores = own_cores(communicator.rank, ranks_on_host, self.kernels.threads)
        self.lanes = (
            LaneExecutor(torch.inference_mode, cores, self._abort_after) if are_lanes_threads else None
        )
        ctas = None if self.gpu_prices is None else self.gpu_prices.ctas
        self.streams = (
            DeviceExecutor(communicator, config.executor == "lanes", ctas)
            if config.device == "cuda"
            else None
        )
        is_replayed = config.replay and self.streams is None
        self.replayer = Replayer(self.kernels, communicator, self.lanes) if is_replayed else None
        self.graphs = None if backend is None else self._capture_decoding(backend)

    @torch.inference_mode()
    def execute(self, batch: ForwardBatch, sampled: Tensor | None = None) -> Tensor:
        """Run one batch. On rank 0, returns the logits it asked for, (num_logits, vocab_size) float32 on the kernels'
        device, and takes the last pass's tokens where the batch names some by their row."""
        if self.decoder.fed is not None and batch.is_fed:
            self.decoder.fed.take(sampled, self.communicator)
        if self.graphs is not None and not len(batch.moves):
            is_observed = self.observe is not None or self.recorder is not None
            logits = self.graphs.execute(batch, self._observer_of if is_observed else None)
            if logits is not None:
                return logits
        plan = batch.plan(self.model_config.num_layers, fetches_weights=self.weights_tier is not None)
        if self.mover is not None:
            self.mover.begin(batch)
        self.communicator.begin_pass()
        forward = self.decoder.forward(plan, batch, self.cache.tensor, self.mover)
        observe = self._observer_of(plan)
        is_woven = self.lanes is not None and plan.overlaps
        if is_woven:
            self.communicator.share_core(True)
        if self.streams is not None:
            self.streams.run(plan, forward.handlers, observe)
        elif self.replayer is not None:
            self.replayer.run(forward, observe)
        else:
            run_plan(plan, forward.handlers, observe, self.lanes)
        if is_woven:
            self.communicator.share_core(False)
        self._end_moves(plan)
        return forward.logits

    def _open_weights_tier(self, source: WeightSource, shard: Shard, quantize: str) -> WeightsTier | None:
        """Opens the tier that the layers' weights are to be in, if there is one."""
        spec, communicator = self.config.weights_tier_spec, self.communicator
        if spec is None:
            return None
        return WeightsTier(
            spec,
            self.model_config.num_layers,
            self.config.timeout_s,
            communicator.rank,
            communicator.size,
            layers_bytes(self.model_config, shard, self.dtype.itemsize, formats_of(source, quantize)),
        )

    def _make_mover(self, layout: CacheLayout) -> TierMover | None:
        """Takes the tiers' memory; returns who moves blocks between them and the cache, if there are any."""
        if not self.config.kv_tiers or not layout.block_bytes:
            return None
        self._slots.allocate(self.tier_capacities)
        # Other ranks wait for this one meanwhile, and no longer than `timeout_s`.
        most_s = self.config.timeout_s / 2 if self.communicator.size > 1 else math.inf
        return TierMover(self.cache.tensor, self._slots, self.config.kv_tier_timeout_s, most_s)

    def _end_moves(self, plan: Plan) -> None:
        """Collects which blocks some rank could not fetch for the pass that has run."""
        waited_s = None if self.lanes is None else self.lanes.waited_for_memory_s
        fetched = NOTHING_FETCHED if self.mover is None else self.mover.end(waited_s)
        if Op.FETCH in plan.ops and self.communicator.size > 1:
            fetched = replace(fetched, failed=union_of_all(self.communicator, fetched.failed))
        self.fetched = fetched

    def _observer_of(self, plan: Plan) -> Observer | None:
        """Returns who is told of the steps of `plan`."""
        return self.observe if self.recorder is None else self.recorder.observe(plan)

    def _capture_decoding(self, backend: GraphBackend) -> GraphReplayer:
        """Captures the passes that decode; others are captured when they come. A collective call."""
        assert self.streams is not None, "kernels that have graphs compute on a GPU"
        most_blocks = blocks_for(self.max_model_len)
        graphs = GraphReplayer(
            self.decoder, self.cache.tensor, backend, self.streams.run, self.config.max_num_seqs, most_blocks
        )
        if graphs.refusal is not None:
            self.notices = (*self.notices, f"passes run step by step, not as CUDA graphs: {graphs.refusal}")
        graphs.capture_decoding(self._tell_of_captures)
        return graphs

    def _tell_of_captures(self, done: int, total: int) -> None:
        if self.communicator.rank == 0:
            _progress.info("captured %d of %d sizes of decoding batches as CUDA graphs", done, total)

    def _abort_after(self, failure: BaseException) -> None:
        """Ends the waits of the other ranks, and of this rank's transfers, for data that will not come."""
        self.communicator.abort(f"{type(failure).__name__}: {failure}")

    def close(self) -> None:
        """Ends the executor's threads and leaves the group; gives back weights, cache and the kernels' threads.

        They go now, not when Python collects the runner, which is of no more use.
        """
        if self.lanes is not None:
            self.lanes.close()
        if self.replayer is not None:
            self.replayer.close()
        if self.graphs is not None:
            self.graphs.close()
            self.graphs = None  # it knows the weights and the cache
        self.communicator.close()
        if self.mover is not None:
            self.mover.close()
            self.mover = None  # it knows the cache
        else:
            self._slots.close()
        self.cache.close()
        if self.weights_tier is not None:
            self.weights_tier.close()
        del self.decoder, self.cache, self.kernels, self.communicator

    def describe(self) -> RankInfo:
        tier = self.weights_tier
        tier_bytes, room_bytes = (0, 0) if tier is None else (tier.size_bytes, tier.local_bytes)
        return RankInfo(
            rank=self.communicator.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=name_of(self.kernels.device),
            threads=self.kernels.threads,
            kernels=self.kernels.name,
            dtype=str(self.dtype).removeprefix("torch."),
            weights=self.weights_name,
            num_kv_blocks=self.num_blocks,
            peak_memory_bytes=peak_memory_bytes(),
            weights_bytes=self.decoder.size_bytes - tier_bytes + room_bytes,
            weights_tier_bytes=tier_bytes,
            num_tier_slots=self._slots.num_slots,
        )

    def _measure_exchange(self) -> Exchange | None:
        """Measures transfers where the choice to weave depends on their speed. All ranks get the same figures.

        Not on devices, whose work the clocks of a process do not see: there `prepare_gpus` does.
        """
        config, communicator = self.config, self.communicator
        is_decided = config.weave != "auto" or config.executor != "lanes" or communicator.size == 1
        if is_decided or not communicator.name.startswith("torch") or self.kernels.device.type != "cpu":
            return None
        return measure_exchange(communicator, self.model_config.hidden_size, self.dtype)


def wait_until_loaded(communicator: Communicator) -> None:
    """Returns once every rank has called it, however long one takes to load: other calls wait for `timeout_s`."""
    messages_of_all(communicator, b"", idle=True)


def roll_call(communicator: Communicator, own: RankInfo) -> list[RankInfo]:
    """Every rank's RankInfo, in rank order, on every rank. A rank that is still loading is waited for."""
    calls = messages_of_all(communicator, json.dumps(asdict(own)).encode(), idle=True)
    return [RankInfo(**json.loads(call)) for call in calls]


def common_capacities(ranks: list[RankInfo]) -> list[int]:
    """How many blocks each tier holds on every rank."""
    of_tiers = zip(*(info.num_tier_slots for info in ranks), strict=True)
    return [min(count for count in counts if count is not None) for counts in of_tiers]


def union_of_all(communicator: Communicator, own: frozenset[int]) -> frozenset[int]:
    """The numbers that some rank has in its set, on every rank. A collective call."""
    messages = messages_of_all(communicator, np.array(sorted(own), dtype=np.int32).tobytes())
    return frozenset(np.frombuffer(b"".join(messages), np.int32).tolist())


def name_of(device: torch.device) -> str:
    """Returns a name for people: a GPU's own, behind its number."""
    return str(device) if device.type != "cuda" else f"{device} {torch.cuda.get_device_name(device)}"


def own_cores(rank: int, ranks_on_host: int, threads: int) -> list[int]:
    """Returns a rank's own cores where the ranks of this host fill all cores exactly, and otherwise none."""
    cores = sorted(os.sched_getaffinity(0))
    if ranks_on_host < 2 or ranks_on_host * threads != len(cores):
        return []
    first = rank % ranks_on_host * threads
    return cores[first : first + threads]


def resolve_max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """The longest sequence served: the model's own context, or less where the configuration says so."""
    if config.max_model_len is None:
        return model.max_position
    if config.max_model_len > model.max_position:
        raise EngineError(
            f"got max_model_len={config.max_model_len}; the model's context is {model.max_position} tokens: "
            f"leave max_model_len out or set it to at most {model.max_position}"
        )
    return config.max_model_len


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far: VmHWM, or without /proc getrusage's figure, which survives exec."""
    with suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024
