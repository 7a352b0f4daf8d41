"""The key of a model's wave table: its sizes and its ranks' shares, with the machine that the caller knows."""

from __future__ import annotations

from collections.abc import Sequence

from interlace.models.config import ModelConfig
from interlace.models.shard import Shard
from tokenweave.wave_table import RankShape, TableKey


def key_of_shards(
    config: ModelConfig,
    shards: Sequence[Shard],
    *,
    machine: str,
    kernels: str,
    library: str,
    dtype: str,
    threads: int,
) -> TableKey:
    """Returns the key of the wave table for this model, split into `shards`, on such a machine."""
    return TableKey(
        machine=machine,
        kernels=kernels,
        library=library,
        dtype=dtype,
        threads=threads,
        hidden_size=config.hidden_size,
        head_dim=config.head_dim,
        num_experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        sliding_window=config.sliding_window or 0,
        ranks=tuple(
            RankShape(len(shard.heads), len(shard.kv_heads), len(shard.intermediate), len(shard.vocab))
            for shard in shards
        ),
    )
