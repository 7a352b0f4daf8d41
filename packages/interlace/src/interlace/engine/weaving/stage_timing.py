"""Timing of stages: all ranks of a model in this process, a thread each, to fill a wave table.

The weights are random, and of each kind of layer only as many are made as keep them from lying in a cache; everything
else is what the engine runs: the decoder's shards and kernels, and shared memory between the ranks. So a model need not
be loaded to be measured, and all ranks compute at the same time, as they do in the engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import tokenweave
from emucxl import resources
from emucxl.bench import machine
from emucxl.closing import WithBlock
from emucxl.shared_memory import SharedSegment, empty_segment_fd
from interlace.engine.weaving.table_key import key_of_shards, kinds_of_layers
from interlace.models.batch import ForwardBatch
from interlace.models.decoder import Decoder
from interlace.models.footprint import Formats
from interlace.models.matrix_reader import MADE
from interlace.models.shard import Shard
from interlace.models.weights import WeightSource
from tokenweave import native
from tokenweave.communicators import NullCommunicator, ShmCommunicator, segment_bytes
from tokenweave.errors import TuneError
from tokenweave.execute import run_sequential
from tokenweave.kernels import (
    BLOCK_SIZE,
    AttentionBatch,
    Kernels,
    NativeKernels,
    StoredWeight,
    blocks_for,
    make_kernels,
)
from tokenweave.plan import plan_forward
from tokenweave.tune import CONTEXT, FEW_QUERIES, MANY
from tokenweave.wave_table import TableKey

if TYPE_CHECKING:
    from interlace.models.config import ModelConfig
    from tokenweave.communicators import Communicator

ROW_TILE = 12  # rows of a tile of the native matrix products: native/kernels/kernels.h of tokenweave
COLD_BYTES = 128e6  # weights of all ranks together, so that none is found in a cache
JOIN_TIMEOUT_S = 60.0
SMALL_SCALE = 0x2C  # twice this byte is 0.065 as a float16; whatever the codes, nothing overflows


def table_key(
    config: ModelConfig, size: int, kernels: Kernels, dtype: torch.dtype, weights: str = "none"
) -> TableKey:
    """Returns the key of the wave table for this model, on `size` ranks of this machine with such kernels.

    `weights` is their name (`footprint.weights_name`): products with weights in blocks take other times.
    """
    shards = Shard.all_of(config, size)
    isa, build = (
        (kernels.isa, f" {native.build()}") if isinstance(kernels, NativeKernels) else (torch.__version__, "")
    )
    return key_of_shards(
        config,
        shards,
        machine=f"{machine.cpu_model()}, {resources.num_threads()} cores",
        kernels=f"{kernels.name} {isa}" + (f", {weights} weights" if weights != "none" else ""),
        library=tokenweave.__version__ + build,
        dtype=str(dtype).removeprefix("torch."),
        threads=kernels.threads,
    )


def row_tile(kernels: Kernels) -> int:
    """Rows that the kernels' matrix products take at once."""
    return ROW_TILE if isinstance(kernels, NativeKernels) else 1


class RandomWeights(WeightSource):
    """Weights of the right shapes and of one size, for measuring: vectors are ones, blocks are all alike."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, formats: Formats | None = None) -> None:
        """`formats`: of the matrices that are in blocks."""
        super().__init__(config, ())
        self._dtype, self._formats = dtype, formats or {}
        self._noise = torch.randn(1 << 20).to(dtype) * 0.02

    def release_pages(self) -> None:
        """There are none."""

    def _read(self, name: str, rows: range, columns: range) -> Tensor:
        if len(self._shapes[name]) == 1:
            return torch.ones(len(rows), dtype=self._dtype)
        count = len(rows) * len(columns)
        return self._noise.repeat(-(-count // len(self._noise)))[:count].view(len(rows), len(columns))

    def quantised_as(self, name: str) -> str | None:
        return self._formats[name].name if name in self._formats else None

    def _read_stored(self, name: str, rows: range, columns: range) -> StoredWeight | None:
        form, skipped = self._formats[name], columns.start % self._formats[name].block_values
        blocks = torch.full(
            (len(rows), form.row_bytes(skipped + len(columns))), SMALL_SCALE, dtype=torch.uint8
        )
        return StoredWeight(form, len(rows), len(columns), blocks, skipped)


class RankStages:
    """The stages of one rank. Each call works on the next layer of a kind, so that its weights are not in a cache."""

    def __init__(self, decoder: Decoder, layers: tuple[int, ...], max_tokens: int) -> None:
        """`layers`: the kind of each of the decoder's layers."""
        self.decoder, self._every_layer = decoder, tuple(range(len(layers)))
        self._layers_of = {
            kind: tuple(at for at in self._every_layer if layers[at] == kind) for kind in set(layers)
        }
        config, layout, dtype = decoder.config, decoder.heads, decoder.dtype
        self._hidden = torch.randn(max_tokens, config.hidden_size).to(dtype)
        most_queries = max(max_tokens, MANY * FEW_QUERIES)
        self._queries = torch.randn(most_queries, layout.num_heads * layout.head_dim).to(dtype)
        self._residual = torch.zeros(max_tokens, config.hidden_size)
        self._ids = torch.arange(max_tokens, dtype=torch.int32) % config.vocab_size
        self._cos_sin = decoder.rotations[0].table(max_tokens)
        keys = max(max_tokens + CONTEXT, MANY * (FEW_QUERIES + CONTEXT + BLOCK_SIZE))
        self._blocks = torch.arange(blocks_for(keys), dtype=torch.int32)
        self._cache = decoder.kernels.new_kv_cache(config.num_layers, len(self._blocks), layout, dtype).fill_(
            0.01
        )
        self._rows = torch.zeros(most_queries, dtype=torch.int32)
        self._batch: AttentionBatch | None = None
        self._calls = 0
        # A single thread's own time leaves out what other programs took; more threads have only the wall's in common.
        self._clock = time.thread_time if decoder.kernels.threads == 1 else time.perf_counter
        self._stages: dict[str, Callable[[int, int], object]] = {
            "projections": self._projections,
            "embed": self._embed,
            "logits": self._logits,
        }

    def time(self, stage: str, num_tokens: int, repeats: int) -> float:
        """Seconds of one call on average."""
        if stage == "reduce":
            return self._time_reduce(num_tokens, repeats)
        return self._time(lambda layer: self._stages[stage](layer, num_tokens), repeats, self._every_layer)

    def time_mlp(self, kind: int, num_tokens: int, repeats: int) -> float:
        return self._time(lambda layer: self._mlp(layer, num_tokens), repeats, self._layers_of[kind])

    def time_attention(self, kind: int, num_seqs: int, num_new: int, num_keys: int, repeats: int) -> float:
        per_seq = blocks_for(num_keys)
        tables = self._blocks[: num_seqs * per_seq].view(num_seqs, per_seq)
        starts = torch.arange(num_seqs + 1, dtype=torch.int32) * num_new
        lengths = torch.full((num_seqs,), num_keys, dtype=torch.int32)
        decoder, rows = self.decoder, self._rows[: num_seqs * num_new]
        query = self._queries[: len(rows)]
        batch = AttentionBatch(
            self._cos_sin, rows, rows, tables, starts, lengths
        )  # nothing is rotated or stored

        def attend(index: int) -> None:
            layer = decoder.layers[index].attention
            decoder.kernels.paged_attention(query, self._cache[index], batch, layer)

        return self._time(attend, repeats, self._layers_of[kind])

    def time_pass(self, num_tokens: int) -> float:
        decoder = self.decoder
        batch = ForwardBatch.prefill(num_tokens, decoder.config.vocab_size)
        plan = plan_forward(decoder.config.num_layers, num_tokens)
        forward = decoder.forward(plan, batch, self._cache)
        decoder.communicator.barrier()
        start = time.perf_counter()
        run_sequential(plan, forward.handlers)
        return time.perf_counter() - start

    def _time(self, call: Callable[[int], object], repeats: int, layers: tuple[int, ...]) -> float:
        self.decoder.communicator.barrier()
        start = self._clock()
        for _ in range(repeats):
            self._calls += 1
            call(layers[self._calls % len(layers)])
        return (self._clock() - start) / repeats

    def _time_reduce(self, num_tokens: int, repeats: int) -> float:
        """Times the reduction alone. A matrix product before it leaves its result in the core's cache."""
        communicator, total_s = self.decoder.communicator, 0.0
        for _ in range(repeats):
            partial = self._new_partial(num_tokens)
            partial.copy_(self._hidden[:num_tokens])
            communicator.barrier()
            start = time.perf_counter()
            communicator.all_reduce_rms_norm(partial, self._residual[:num_tokens], self.decoder.norms[1])
            total_s += time.perf_counter() - start
        return total_s / repeats

    def _projections(self, index: int, num_tokens: int) -> None:
        kernels, layer = self.decoder.kernels, self.decoder.layers[index]
        qkv = kernels.linear(self._hidden[:num_tokens], layer.qkv)
        batch = self._prefill(num_tokens)
        query = kernels.rope_and_store(qkv, self._cache[index], batch, layer.attention)
        kernels.linear(query, layer.o, out=self._new_partial(num_tokens))

    def _prefill(self, num_tokens: int) -> AttentionBatch:
        """One sequence from position 0, in the first blocks; the same object as long as the length stays."""
        if self._batch is None or self._batch.num_tokens != num_tokens:
            tokens = ForwardBatch.prefill(num_tokens, self.decoder.config.vocab_size)
            self._batch = AttentionBatch(
                self._cos_sin, tokens.positions, tokens.slots, tokens.block_tables, tokens.query_start, tokens.seq_lens
            )  # fmt: skip
        return self._batch

    def _mlp(self, index: int, num_tokens: int) -> None:
        mlp = self.decoder.layers[index].mlp
        mlp(self.decoder.kernels, self._hidden[:num_tokens], out=self._new_partial(num_tokens))

    def _embed(self, index: int, num_tokens: int) -> None:
        decoder = self.decoder
        rows = decoder.kernels.gather_rows(decoder.embed, self._ids[:num_tokens], decoder.shard.vocab.start)
        self._new_partial(num_tokens).copy_(rows)
        torch.zeros_like(rows, dtype=torch.float32)

    def _logits(self, index: int, num_tokens: int) -> None:
        head = self.decoder.lm_head
        out = torch.empty(num_tokens, head.n, dtype=torch.float32)
        self.decoder.kernels.linear(self._hidden[:num_tokens], head, out=out)

    def _new_partial(self, num_tokens: int) -> Tensor:
        decoder = self.decoder
        return decoder.communicator.new_partial(num_tokens, decoder.config.hidden_size, decoder.dtype)


class HostStages(WithBlock):
    """All ranks, each on a thread of its own: what `tokenweave.tune.measure_table` times. Close it when done."""

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
        kinds = kinds_of_layers(config, Shard.all_of(config, size))
        blocks = [*formats.values()] if formats else [MADE[quantize]] if quantize in MADE else []
        value_bytes = min((form.bits_per_value / 8 for form in blocks), default=dtype.itemsize)
        chosen = _cold_layers(config, kinds, value_bytes)
        self._layers = tuple(kinds[layer] for layer in chosen)
        self._segment = SharedSegment.create("interlace-tune", segment_bytes(size))
        self._symmetric_fd = empty_segment_fd("interlace-tune-activations")
        self._communicators: list[Communicator] = []
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="stages")
        layers = _with_layers(config, chosen)
        self._arguments = (layers, size, kernels, threads, dtype, max_tokens, quantize)
        self._formats = _of_layers(formats or {}, chosen)
        try:
            self._communicators = [self._join(rank) for rank in range(size)]
            made = [self._pool.submit(self._make, communicator) for communicator in self._communicators]
            self._ranks = [rank.result(JOIN_TIMEOUT_S) for rank in made]
        except BaseException:
            self.close()
            raise

    def time(self, stage: str, num_tokens: int, repeats: int) -> tuple[float, ...]:
        return self._on_all(lambda rank: rank.time(stage, num_tokens, repeats))

    def time_mlp(self, kind: int, num_tokens: int, repeats: int) -> tuple[float, ...]:
        return self._on_all(lambda rank: rank.time_mlp(kind, num_tokens, repeats))

    def time_attention(
        self, kind: int, num_seqs: int, num_new: int, num_keys: int, repeats: int
    ) -> tuple[float, ...]:
        return self._on_all(lambda rank: rank.time_attention(kind, num_seqs, num_new, num_keys, repeats))

    def time_pass(self, num_tokens: int) -> tuple[float, ...]:
        return self._on_all(lambda rank: rank.time_pass(num_tokens))

    @property
    def layers(self) -> tuple[int, ...]:
        return self._layers

    def close(self) -> None:
        self._ranks = []
        self._pool.shutdown()
        for communicator in self._communicators:
            communicator.close()
        self._communicators = []
        os.close(self._symmetric_fd)
        self._segment.close()

    def _on_all(self, call: Callable[[RankStages], float]) -> tuple[float, ...]:
        @torch.inference_mode()
        def run(rank: RankStages) -> float:
            return call(rank)

        return tuple(future.result() for future in [self._pool.submit(run, rank) for rank in self._ranks])

    def _join(self, rank: int) -> Communicator:
        size = self._arguments[1]
        if size == 1:
            return NullCommunicator()
        return ShmCommunicator(self._segment, rank, size, symmetric_fd=self._symmetric_fd)

    @torch.inference_mode()
    def _make(self, communicator: Communicator) -> RankStages:
        config, size, name, threads, dtype, max_tokens, quantize = self._arguments
        kernels = make_kernels(name, threads)
        communicator.kernels = make_kernels(name, 1)  # as beside a compute lane
        communicator.reserve_activations(max_tokens, config.hidden_size, dtype)
        shard = Shard.of(config, communicator.rank, size)
        weights = RandomWeights(config, dtype, self._formats)
        decoder = Decoder(weights, shard, kernels, communicator, dtype, max_tokens, quantize)
        return RankStages(decoder, self._layers, max_tokens)


def _cold_layers(config: ModelConfig, kinds: tuple[int, ...], value_bytes: float) -> tuple[int, ...]:
    """The first layers of each kind: as many as make the weights of all ranks too large for a cache."""
    attention = 2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)
    chosen: dict[int, list[int]] = {}
    for layer, kind in enumerate(kinds):
        experts = config.num_experts if config.has_experts(layer) else 1
        mlp = 3 * config.hidden_size * config.mlp_size(layer) * experts
        enough = int(COLD_BYTES / ((attention + mlp) * value_bytes)) + 1
        layers = chosen.setdefault(kind, [])
        if len(layers) < enough:
            layers.append(layer)
    return tuple(sorted(layer for layers in chosen.values() for layer in layers))


def _of_layers(formats: Formats, layers: tuple[int, ...]) -> Formats:
    """The formats of these layers, which are numbered anew, and those of the vocabulary."""
    chosen = {name: form for name, form in formats.items() if not name.startswith("layers.")}
    for at, layer in enumerate(layers):
        before = f"layers.{layer}."
        chosen |= {
            f"layers.{at}.{name.removeprefix(before)}": form
            for name, form in formats.items()
            if name.startswith(before)
        }
    return chosen


def _with_layers(config: ModelConfig, layers: tuple[int, ...]) -> ModelConfig:
    """The model that has these layers only."""
    places = range(len(layers))
    return replace(
        config,
        num_layers=len(layers),
        full_layers=tuple(at for at in places if layers[at] in config.full_layers),
        dense_layers=tuple(at for at in places if layers[at] in config.dense_layers),
    )
