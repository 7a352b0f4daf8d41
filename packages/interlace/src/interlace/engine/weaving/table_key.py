"""The key of a model's wave table: its sizes, the kinds of its layers, and its ranks' shares, with the machine that the
caller knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from interlace.models.config import ModelConfig
from interlace.models.shard import Shard
from tokenweave.wave_table import LayerKind, MlpShape, RankShape, TableKey


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
        kinds=tuple(dict.fromkeys(_kinds(config, shards))),
        ranks=tuple(RankShape(len(shard.heads), len(shard.kv_heads), len(shard.vocab)) for shard in shards),
    )


def kinds_of_layers(config: ModelConfig, shards: Sequence[Shard]) -> tuple[int, ...]:
    """Returns the kind of each of the model's layers: its place in the `kinds` of the model's key."""
    kinds = list(_kinds(config, shards))
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    return tuple(places[kind] for kind in kinds)


def _kinds(config: ModelConfig, shards: Sequence[Shard]) -> Iterator[LayerKind]:
    """Of each layer; those alike are equal."""
    for layer in range(config.num_layers):
        yield LayerKind(_mlp_shape(config, shards, layer), config.window_of(layer) or 0)


def _mlp_shape(config: ModelConfig, shards: Sequence[Shard], layer: int) -> MlpShape:
    columns = _columns(shards, config.mlp_size(layer))
    if not config.has_experts(layer):
        return MlpShape(columns)
    shared = config.shared_intermediate_size
    return MlpShape(
        columns, config.num_experts, config.experts_per_token, _columns(shards, shared) if shared else ()
    )


def _columns(shards: Sequence[Shard], size: int) -> tuple[int, ...]:
    """Of an MLP with `size` of them, those of each rank."""
    return tuple(len(shard.columns(size)) for shard in shards)
