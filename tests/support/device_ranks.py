"""Ranks without an engine, on kernels of any device; and kernels that compute on the CPU as on a device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlace.engine.cache.kv_cache import KVCache
from interlace.engine.cache.layout import CacheLayout
from interlace.models.batch import ForwardBatch
from interlace.models.decoder import Decoder, Forward
from interlace.models.shard import Shard
from interlace.models.sources import load_model
from support.operations import OnlyOn
from tokenweave.communicators import Communicator, NullCommunicator, thread_group
from tokenweave.execute import run_sequential
from tokenweave.kernels import BLOCK_SIZE, AttentionBatch, AttentionLayer, Kernels, ReferenceKernels
from tokenweave.kernels.attention import reference_masked_attention
from tokenweave.kernels.mixture import mixture_of_all_rows
from tokenweave.kernels.rotary import reference_rope_and_store
from tokenweave.plan import plan_forward

NUM_BLOCKS = 16


class Rank:
    """One rank of a model, on kernels of any device."""

    def __init__(self, directory: Path, communicator: Communicator) -> None:
        model, kernels = load_model(str(directory)), communicator.kernels
        shard = Shard.of(model.config, communicator.rank, communicator.size)
        self.decoder = Decoder(model.weights, shard, kernels, communicator, torch.float32, 256)
        layout = CacheLayout(model.config.num_layers, self.decoder.heads, torch.float32)
        self.cache = KVCache(kernels, layout, NUM_BLOCKS).tensor
        self.is_watched = False

    def forward(self, batch: ForwardBatch) -> Forward:
        plan = plan_forward(self.decoder.config.num_layers, batch.num_tokens, batch.split)
        return self.decoder.forward(plan, batch, self.cache)

    @torch.inference_mode()
    def execute(self, batch: ForwardBatch) -> Tensor:
        forward = self.forward(batch)
        if self.is_watched:
            with OnlyOn(self.decoder.kernels.device):
                run_sequential(forward.plan, forward.handlers)
        else:
            run_sequential(forward.plan, forward.handlers)
        return forward.logits


class Passes:
    """All ranks of a model, in threads; what `Driver` drives."""

    num_blocks = NUM_BLOCKS

    def __init__(self, directory: Path, *kernels: Kernels) -> None:
        """`kernels`: of each rank."""
        group: Sequence[Communicator] = (
            [NullCommunicator()] if len(kernels) == 1 else thread_group(len(kernels))
        )
        for communicator, own in zip(group, kernels, strict=True):
            communicator.kernels = own
        self.ranks = [Rank(directory, communicator) for communicator in group]

    def execute(self, batch: ForwardBatch) -> Tensor:
        """Gives rank 0's logits."""
        with ThreadPoolExecutor(len(self.ranks)) as threads:
            logits, *_ = threads.map(lambda rank: rank.execute(batch), self.ranks)
        return logits


class AsOnADevice(ReferenceKernels):
    """Computes on the CPU by the ways that are for other devices. Nothing is stored at a slot of -1."""

    def rope_and_store(
        self, qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        spare = torch.cat([cache_layer, torch.zeros_like(cache_layer[:1])])
        slots = torch.where(batch.slots < 0, len(cache_layer) * BLOCK_SIZE, batch.slots)
        q = reference_rope_and_store(qkv, spare, replace(batch, slots=slots.int()), layer)
        cache_layer.copy_(spare[:-1])
        return q

    def paged_attention(self, q: Tensor, cache_layer: Tensor, batch: Any, layer: Any) -> Tensor:
        return reference_masked_attention(q, cache_layer, batch, layer)

    def mixture(self, x: Tensor, experts: Sequence[Any], chosen: Tensor, weights: Tensor) -> Tensor:
        return mixture_of_all_rows(self, x, experts, chosen, weights)
