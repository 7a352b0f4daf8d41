"""Llama-3-8B as numbers: its shapes, and the bytes and operations that a pass over it cannot do without."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from interlace.models.config import ModelConfig, RopeConfig, weight_shapes

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_position=32_768,
    rope=RopeConfig(theta=500_000.0),
)
TINY = ModelConfig(
    family="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    max_position=256,
    rope=RopeConfig(theta=500_000.0),
)


@dataclass(frozen=True)
class PassWork:
    """The bytes and the operations that one forward pass cannot do without."""

    num_bytes: float  # read and written
    flops: float


def decode_work(
    config: ModelConfig, num_seqs: int, num_keys: int, value_bytes: int, weight_bytes: int | None = None
) -> PassWork:
    """One token of each of `num_seqs` sequences, which sees `num_keys` keys: every weight is read once.

    `weight_bytes`: of all weights but the embedding, where they do not take `value_bytes` each, as keys do.
    """
    weights = config.num_layers * sum(layer_values(config).values()) + head_values(config)
    keys = num_seqs * num_keys * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    pairs = num_seqs * num_keys * config.num_layers
    num_bytes = value_bytes * weights if weight_bytes is None else weight_bytes
    return PassWork(num_bytes + value_bytes * keys, 2.0 * num_seqs * weights + attention_flops(config, pairs))


def prefill_work(config: ModelConfig, num_tokens: int, value_bytes: int) -> PassWork:
    """One sequence from its beginning, and the logits of its last token.

    In the last layer the other tokens have keys and values alone.
    """
    layer = layer_values(config)
    every = sum(layer.values())
    kept = layer["k"] + layer["v"]
    flops = 2.0 * num_tokens * ((config.num_layers - 1) * every + kept)
    flops += 2.0 * (every - kept + head_values(config))
    pairs = (config.num_layers - 1) * num_tokens * (num_tokens + 1) // 2 + num_tokens
    weights = config.num_layers * every + head_values(config)
    return PassWork(value_bytes * weights, flops + attention_flops(config, pairs))


def layer_values(config: ModelConfig) -> dict[str, int]:
    """The values of each matrix of a layer; all layers are alike."""
    return {
        name.removeprefix("layers.0."): prod(shape)
        for name, shape in weight_shapes(config).items()
        if name.startswith("layers.0.") and len(shape) == 2
    }


def head_values(config: ModelConfig) -> int:
    """The values of the output head."""
    return config.vocab_size * config.hidden_size


def attention_flops(config: ModelConfig, pairs: int) -> float:
    """The operations of so many pairs of a query and a key, each in all heads of one layer."""
    return 4.0 * pairs * config.num_heads * config.head_dim
