"""The stages of one rank, each ready to be timed at any number of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch
from interlace.models.decoder import Decoder, Forward
from interlace.models.placement import Indices, place
from tokenweave.execute import run_sequential
from tokenweave.kernels import BLOCK_SIZE, AttentionBatch, blocks_for
from tokenweave.plan import Plan, plan_forward
from tokenweave.stage_clock import EventClock, StageClock
from tokenweave.tune import CONTEXT, FEW_QUERIES, MANY


class RankStages:
    """The stages of one rank. Each call works on the next layer of a kind, so that its weights are not in a cache.

    All tensors are on the device of the decoder's kernels.
    """

    def __init__(self, decoder: Decoder, layers: tuple[int, ...], max_tokens: int, clock: StageClock) -> None:
        """`layers`: the kind of each of the decoder's layers."""
        self.decoder, self.clock, self._every_layer = decoder, clock, tuple(range(len(layers)))
        self._layers_of = {
            kind: tuple(at for at in self._every_layer if layers[at] == kind) for kind in set(layers)
        }
        config, layout, dtype = decoder.config, decoder.heads, decoder.dtype
        self._device = device = decoder.kernels.device
        self._hidden = torch.randn(max_tokens, config.hidden_size, device=device).to(dtype)
        most_queries = max(max_tokens, MANY * FEW_QUERIES)
        self._queries = torch.randn(most_queries, layout.num_heads * layout.head_dim, device=device).to(dtype)
        self._ids = torch.arange(max_tokens, dtype=torch.int32, device=device) % config.vocab_size
        self._rotations = decoder.rotations[0].table(max_tokens)
        keys = max(max_tokens + CONTEXT, MANY * (FEW_QUERIES + CONTEXT + BLOCK_SIZE))
        self._blocks = torch.arange(blocks_for(keys), dtype=torch.int32, device=device)
        kernels, num_layers = decoder.kernels, config.num_layers
        self._cache = kernels.new_kv_cache(num_layers, len(self._blocks), layout, dtype).fill_(0.01)
        self._rows = torch.zeros(most_queries, dtype=torch.int32, device=device)
        self._batch: AttentionBatch | None = None
        self._calls = 0
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
        starts = torch.arange(num_seqs + 1, dtype=torch.int32, device=self._device) * num_new
        lengths = torch.full((num_seqs,), num_keys, dtype=torch.int32, device=self._device)
        decoder, rows = self.decoder, self._rows[: num_seqs * num_new]
        query = self._queries[: len(rows)]
        batch = AttentionBatch(
            self._rotations, rows, rows, tables, starts, lengths
        )  # nothing is rotated, or stored

        def attend(index: int) -> None:
            layer = decoder.layers[index].attention
            decoder.kernels.paged_attention(query, self._cache[index], batch, layer)

        return self._time(attend, repeats, self._layers_of[kind])

    def time_pass(self, num_tokens: int) -> float:
        plan = plan_forward(self.decoder.config.num_layers, num_tokens)
        forward = self._forward(plan)
        self.decoder.communicator.barrier()
        start = time.perf_counter()
        run_sequential(plan, forward.handlers)
        return time.perf_counter() - start

    def _forward(self, plan: Plan) -> Forward:
        """One sequence from position 0, with the logits of its last token."""
        batch = ForwardBatch.prefill(plan.num_tokens, self.decoder.config.vocab_size)
        return self.decoder.forward(plan, batch, self._cache)

    def _time(self, call: Callable[[int], object], repeats: int, layers: tuple[int, ...]) -> float:
        self.decoder.communicator.barrier()
        return self.clock.seconds(lambda: call(self._next_of(layers)), repeats)

    def _next_of(self, layers: tuple[int, ...]) -> int:
        self._calls += 1
        return layers[self._calls % len(layers)]

    def _time_reduce(self, num_tokens: int, repeats: int) -> float:
        """Times the reduction alone. A matrix product before it leaves its result in the core's cache."""
        communicator, total_s = self.decoder.communicator, 0.0
        residual = self._new_residual(num_tokens)
        for _ in range(repeats):
            partial = self._new_partial(num_tokens)
            partial.copy_(self._hidden[:num_tokens])
            communicator.barrier()
            start = time.perf_counter()
            communicator.all_reduce_rms_norm(partial, residual, self.decoder.norms[1])
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
            (there,) = place([Indices.of(tokens, [tokens.positions])], self._device)
            rows, slots, tables = there.rotation_rows[0], there.slots, there.block_tables
            self._batch = AttentionBatch(
                self._rotations, rows, slots, tables, there.query_start, there.seq_lens
            )
        return self._batch

    def _mlp(self, index: int, num_tokens: int) -> None:
        mlp = self.decoder.layers[index].mlp
        mlp(self.decoder.kernels, self._hidden[:num_tokens], out=self._new_partial(num_tokens))

    def _embed(self, index: int, num_tokens: int) -> None:
        decoder = self.decoder
        rows = decoder.kernels.gather_rows(decoder.embed, self._ids[:num_tokens], decoder.shard.vocab.start)
        self._new_partial(num_tokens).copy_(rows)
        self._new_residual(num_tokens)

    def _logits(self, index: int, num_tokens: int) -> None:
        head = self.decoder.lm_head
        out = torch.empty(num_tokens, head.n, dtype=torch.float32, device=self._device)
        self.decoder.kernels.linear(self._hidden[:num_tokens], head, out=out)

    def _new_partial(self, num_tokens: int) -> Tensor:
        decoder = self.decoder
        return decoder.communicator.new_partial(num_tokens, decoder.config.hidden_size, decoder.dtype)

    def _new_residual(self, num_tokens: int) -> Tensor:
        decoder = self.decoder
        return decoder.communicator.new_residual(num_tokens, decoder.config.hidden_size, decoder.dtype)


class DeviceStages(RankStages):
    """The stages of a rank on a GPU, on the stream that is current. The host has no part in their times."""

    def __init__(
        self, decoder: Decoder, layers: tuple[int, ...], max_tokens: int, clock: EventClock[Any]
    ) -> None:
        super().__init__(decoder, layers, max_tokens, clock)
        self.events = clock

    def time_pass(self, num_tokens: int) -> float:
        plan = plan_forward(self.decoder.config.num_layers, num_tokens)
        communicator, forward = self.decoder.communicator, self._forward(plan)

        def run() -> None:
            communicator.begin_pass()
            run_sequential(plan, forward.handlers)

        communicator.barrier()
        return self.events.seconds(run, 1)

    def issue_s(self, num_tokens: int) -> float:
        """Seconds of the host to issue a step of the compute lane, on average over a layer's two.

        No collective. The rank takes partial sums that the others do not: a pass has to begin before the next one.
        """
        return self.events.issue_s(lambda: self._layer(num_tokens)) / 2

    def _layer(self, num_tokens: int) -> None:
        """The two steps of the next layer, attention and MLP."""
        index = self._next_of(self._every_layer)
        kernels, layer = self.decoder.kernels, self.decoder.layers[index].attention
        self._projections(index, num_tokens)
        batch = self._prefill(num_tokens)
        kernels.paged_attention(self._queries[:num_tokens], self._cache[index], batch, layer)
        self._mlp(index, num_tokens)

    def _time_reduce(self, num_tokens: int, repeats: int) -> float:
        """Reductions that follow each other in one place, which a cache holds as it does after the product before."""
        communicator, norms = self.decoder.communicator, self.decoder.norms[1]
        residual = self._new_residual(num_tokens)
        partial = self._new_partial(num_tokens).copy_(self._hidden[:num_tokens])
        communicator.barrier()
        return self.events.seconds(
            lambda: communicator.all_reduce_rms_norm(partial, residual, norms), repeats
        )
