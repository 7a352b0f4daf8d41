"""Reads a Hugging Face config.json into a ModelConfig. Absent keys mean what they mean to transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlace.errors import ConfigError
from interlace.models.config import Family, ModelConfig, context_length
from interlace.models.hf_rope import read_hf_rope
from interlace.models.hf_values import flag, integer, mapping, number
from interlace.models.leftovers import refuse_unread_hf_settings
from interlace.models.settings import Settings
from interlace.models.token_ids import as_token_ids

_ATTENTION, _MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


@dataclass(frozen=True)
class _Defaults:
    """What an absent key means, family by family, and what the family always has."""

    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_position: int = 2048
    num_kv_heads: int | None = None  # None: num_heads, which null means in every family
    has_window: bool = True
    sliding_window: int | None = None
    head_dim: int | None = None  # None: hidden_size / num_heads
    biases: tuple[str, ...] = ()  # in every model of the family
    attention_bias: tuple[str, ...] = ()  # what `attention_bias` adds
    mlp_bias: tuple[str, ...] = ()  # what `mlp_bias` adds
    qk_norm: bool = False
    window_by_layer: bool = False  # Qwen: `use_sliding_window` and `max_window_layers`


_FAMILIES: dict[Family, _Defaults] = {
    "llama": _Defaults(has_window=False, attention_bias=_ATTENTION, mlp_bias=_MLP),
    "mistral": _Defaults(max_position=131_072, num_kv_heads=8, sliding_window=4096),
    # Qwen2 has no bias on its attention's output: `attention_bias` says nothing about it, as in transformers.
    "qwen2": _Defaults(
        max_position=32_768,
        num_kv_heads=32,
        biases=("q", "k", "v"),
        attention_bias=("q", "k", "v"),
        window_by_layer=True,
    ),
    "qwen3": _Defaults(
        max_position=32_768,
        num_kv_heads=32,
        attention_bias=_ATTENTION,
        qk_norm=True,
        head_dim=128,
        window_by_layer=True,
    ),
    "mixtral": _Defaults(rope_theta=1_000_000.0, rms_norm_eps=1e-5, max_position=131_072, num_kv_heads=8),
}


def read_hf_config(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    config = settings = Settings(config)
    family = _family(config)
    defaults = _FAMILIES[family]
    _refuse_what_the_decoder_lacks(config)
    hidden_size, num_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    max_position = integer(config, "max_position_embeddings", defaults.max_position)
    rope = read_hf_rope(config, defaults.rope_theta, max_position)
    num_layers = integer(config, "num_hidden_layers")
    found = ModelConfig(
        family=family,
        vocab_size=integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, defaults, num_heads),
        head_dim=_head_dim(config, defaults, hidden_size, num_heads),
        rms_norm_eps=number(config, "rms_norm_eps", defaults.rms_norm_eps),
        max_position=context_length(rope, max_position),
        rope=rope,
        tie_word_embeddings=flag(config, "tie_word_embeddings"),
        biases=_biases(config, defaults),
        qk_norm=defaults.qk_norm,
        sliding_window=_sliding_window(config, defaults, num_layers),
        num_experts=_num_experts(config) if family == "mixtral" else 0,
        experts_per_token=integer(config, "num_experts_per_tok", 2) if family == "mixtral" else 0,
        eos_token_ids=tuple(dict.fromkeys(_token_ids(config, generation, "eos_token_id"))),
        bos_token_id=next(iter(_token_ids(config, generation, "bos_token_id")), None),
    )
    refuse_unread_hf_settings(settings, found)
    return found


def _family(config: Mapping[str, Any]) -> Family:
    for family in _FAMILIES:
        if config.get("model_type") == family:
            return family
    raise ConfigError(
        f"unknown architecture: config.json has model_type {config.get('model_type')!r} and architectures "
        f"{config.get('architectures')!r}; supported are {', '.join(_FAMILIES)}"
    )


def _refuse_what_the_decoder_lacks(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"hidden_act {activation!r} is not supported, expected 'silu'")
    if config.get("quantization_config"):
        method = mapping(config, "quantization_config").get("quant_method")
        raise ConfigError(
            f"config.json asks for quantised weights (quant_method {method!r}): only float32, bfloat16 and "
            "float16 safetensors are supported; use the unquantised model or a GGUF file"
        )


def _biases(config: Mapping[str, Any], defaults: _Defaults) -> tuple[str, ...]:
    found = defaults.biases
    for key, parts in (("attention_bias", defaults.attention_bias), ("mlp_bias", defaults.mlp_bias)):
        if parts and flag(config, key):
            found += tuple(part for part in parts if part not in found)
    return found


def _num_kv_heads(config: Mapping[str, Any], defaults: _Defaults, num_heads: int) -> int:
    is_absent = "num_key_value_heads" not in config
    default = defaults.num_kv_heads if is_absent and defaults.num_kv_heads else num_heads
    return integer(config, "num_key_value_heads", default)


def _head_dim(config: Mapping[str, Any], defaults: _Defaults, hidden_size: int, num_heads: int) -> int:
    if config.get("head_dim") is not None:
        return integer(config, "head_dim")
    if defaults.head_dim is not None:
        return defaults.head_dim
    if num_heads < 1 or hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_heads}) and "
            "config.json names no head_dim"
        )
    return hidden_size // num_heads


def _num_experts(config: Mapping[str, Any]) -> int:
    """transformers knows Mixtral's by two names."""
    return integer(config, "num_local_experts", integer(config, "num_experts", 8))


def _sliding_window(config: Mapping[str, Any], defaults: _Defaults, num_layers: int) -> int | None:
    if defaults.window_by_layer:
        return _window_of_all_layers(config, num_layers)
    if not defaults.has_window:
        if config.get("use_sliding_window") is False:
            config.get("sliding_window")  # read, that is: it is said to be unused
        return None
    window = config.get("sliding_window", defaults.sliding_window)
    return None if window is None else integer({"sliding_window": window}, "sliding_window")


def _window_of_all_layers(config: Mapping[str, Any], num_layers: int) -> int | None:
    """Qwen's window holds from layer `max_window_layers` on: here it must be all layers or none."""
    window = config.get("sliding_window", 4096)
    if not flag(config, "use_sliding_window") or window is None:
        return None
    first = integer(config, "max_window_layers", 28)
    kinds = config.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds)
    ):
        raise ConfigError(f"config.json: 'layer_types' must be a list of names, got {kinds!r}")
    kinds = kinds or ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"}:
        return integer(config, "sliding_window", 4096)
    raise ConfigError(
        "config.json gives some layers a sliding window and others none (use_sliding_window with "
        f"max_window_layers {first} of {num_layers}): only all layers or none is supported; "
        'set "use_sliding_window": false for contexts no longer than the window'
    )


def _token_ids(config: Mapping[str, Any], generation: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The ids under `key` in both files; those of generation_config.json, the file for generating, come first."""
    named = (("generation_config.json", generation), ("config.json", config))
    return tuple(
        token for name, values in named for token in as_token_ids(values.get(key), f"{name}: {key!r}")
    )
