"""The layers of a model that are made to be timed: of each kind as many as keep their weights out of a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from interlace.models.footprint import Formats

if TYPE_CHECKING:
    from interlace.models.config import ModelConfig

COLD_BYTES = 128e6  # weights of all ranks that share a cache together, so that none is found in it


def cold_layers(
    config: ModelConfig, kinds: tuple[int, ...], value_bytes: float, num_caches: int = 1
) -> tuple[int, ...]:
    """The first layers of each kind: as many as make the weights of all ranks too large for their `num_caches`."""
    attention = 2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)
    chosen: dict[int, list[int]] = {}
    for layer, kind in enumerate(kinds):
        experts = config.num_experts if config.has_experts(layer) else 1
        mlp = 3 * config.hidden_size * config.mlp_size(layer) * experts
        enough = int(num_caches * COLD_BYTES / ((attention + mlp) * value_bytes)) + 1
        layers = chosen.setdefault(kind, [])
        if len(layers) < enough:
            layers.append(layer)
    return tuple(sorted(layer for layers in chosen.values() for layer in layers))


def formats_of_layers(formats: Formats, layers: tuple[int, ...]) -> Formats:
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


def with_layers(config: ModelConfig, layers: tuple[int, ...]) -> ModelConfig:
    """The model that has these layers only."""
    places = range(len(layers))
    return replace(
        config,
        num_layers=len(layers),
        full_layers=tuple(at for at in places if layers[at] in config.full_layers),
        dense_layers=tuple(at for at in places if layers[at] in config.dense_layers),
    )
