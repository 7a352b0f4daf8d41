"""Reads a Hugging Face config.json into a ModelConfig. Absent keys mean what they mean to transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlace.errors import ConfigError
from interlace.models.config import Family, ModelConfig, RopeConfig
from interlace.models.leftovers import refuse_unread_hf_settings
from interlace.models.settings import Settings

_HUGE = 1e30  # beyond any value of a configuration; NaN and infinity are not below it
_ATTENTION, _MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


@dataclass(frozen=True)
class _Defaults:
    """What an absent key means, family by family, and what the family always has."""

    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
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
    "mistral": _Defaults(sliding_window=4096),
    # Qwen2 has no bias on its attention's output: `attention_bias` says nothing about it, as in transformers.
    "qwen2": _Defaults(biases=("q", "k", "v"), attention_bias=("q", "k", "v"), window_by_layer=True),
    "qwen3": _Defaults(attention_bias=_ATTENTION, qk_norm=True, head_dim=128, window_by_layer=True),
    "mixtral": _Defaults(rope_theta=1_000_000.0, rms_norm_eps=1e-5),
}


def read_hf_config(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    config = settings = Settings(config)
    family = _family(config)
    defaults = _FAMILIES[family]
    _refuse_what_the_decoder_lacks(config)
    hidden_size, num_heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    max_position = _integer(config, "max_position_embeddings")
    num_layers = _integer(config, "num_hidden_layers")
    found = ModelConfig(
        family=family,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_integer(config, "num_key_value_heads", num_heads),
        head_dim=_head_dim(config, defaults, hidden_size, num_heads),
        rms_norm_eps=_number(config, "rms_norm_eps", defaults.rms_norm_eps),
        max_position=max_position,
        rope=_rope(config, defaults.rope_theta, max_position),
        tie_word_embeddings=_flag(config, "tie_word_embeddings"),
        biases=_biases(config, defaults),
        qk_norm=defaults.qk_norm,
        sliding_window=_sliding_window(config, defaults, num_layers),
        num_experts=_num_experts(config) if family == "mixtral" else 0,
        experts_per_token=_integer(config, "num_experts_per_tok", 2) if family == "mixtral" else 0,
        eos_token_ids=_token_ids(generation, "eos_token_id") or _token_ids(config, "eos_token_id"),
        bos_token_id=next(
            iter(_token_ids(generation, "bos_token_id") or _token_ids(config, "bos_token_id")), None
        ),
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
        method = _mapping(config, "quantization_config").get("quant_method")
        raise ConfigError(
            f"config.json asks for quantised weights (quant_method {method!r}): only float32, bfloat16 and "
            "float16 safetensors are supported; use the unquantised model or a GGUF file"
        )


def _biases(config: Mapping[str, Any], defaults: _Defaults) -> tuple[str, ...]:
    found = defaults.biases
    for key, parts in (("attention_bias", defaults.attention_bias), ("mlp_bias", defaults.mlp_bias)):
        if parts and _flag(config, key):
            found += tuple(part for part in parts if part not in found)
    return found


def _head_dim(config: Mapping[str, Any], defaults: _Defaults, hidden_size: int, num_heads: int) -> int:
    if config.get("head_dim") is not None:
        return _integer(config, "head_dim")
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
    return _integer(config, "num_local_experts", _integer(config, "num_experts", 8))


def _sliding_window(config: Mapping[str, Any], defaults: _Defaults, num_layers: int) -> int | None:
    if defaults.window_by_layer:
        return _window_of_all_layers(config, num_layers)
    if not defaults.has_window:
        if config.get("use_sliding_window") is False:
            config.get("sliding_window")  # read, that is: it is said to be unused
        return None
    window = config.get("sliding_window", defaults.sliding_window)
    return None if window is None else _integer({"sliding_window": window}, "sliding_window")


def _window_of_all_layers(config: Mapping[str, Any], num_layers: int) -> int | None:
    """Qwen's window holds from layer `max_window_layers` on: here it must be all layers or none."""
    window = config.get("sliding_window", 4096)
    if not _flag(config, "use_sliding_window") or window is None:
        return None
    first = _integer(config, "max_window_layers", 28)
    kinds = config.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds)
    ):
        raise ConfigError(f"config.json: 'layer_types' must be a list of names, got {kinds!r}")
    kinds = kinds or ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"}:
        return _integer(config, "sliding_window", 4096)
    raise ConfigError(
        "config.json gives some layers a sliding window and others none (use_sliding_window with "
        f"max_window_layers {first} of {num_layers}): only all layers or none is supported; "
        'set "use_sliding_window": false for contexts no longer than the window'
    )


def _rope(config: Mapping[str, Any], default_theta: float, max_position: int) -> RopeConfig:
    """Old files have rope_theta and rope_scaling, newer ones rope_parameters holding both."""
    scaling = {**_mapping(config, "rope_scaling"), **_mapping(config, "rope_parameters")}
    theta = _number(scaling, "rope_theta", _number(config, "rope_theta", default_theta))
    partial = _number(scaling, "partial_rotary_factor", _number(config, "partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ConfigError(f"partial_rotary_factor {partial} is not supported, expected 1.0")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", None):
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", factor=_number(scaling, "factor"))
    fallback = _integer(config, "original_max_position_embeddings", max_position)
    original = _integer(scaling, "original_max_position_embeddings", fallback)
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            factor=_number(scaling, "factor"),
            original_max_position=original,
            low_freq_factor=_number(scaling, "low_freq_factor"),
            high_freq_factor=_number(scaling, "high_freq_factor"),
        )
    if kind == "yarn":
        return _yarn(scaling, theta, original, max_position)
    raise ConfigError(
        f"rope scaling {kind!r} is not supported; supported are default, linear, llama3 and yarn "
        "(remove rope_scaling from config.json to run within the unscaled context)"
    )


def _yarn(scaling: Mapping[str, Any], theta: float, original: int, max_position: int) -> RopeConfig:
    if original < 1:
        raise ConfigError(
            f"rope scaling 'yarn' needs a positive original_max_position_embeddings, got {original}"
        )
    factor = _number(scaling, "factor", max_position / original)
    return RopeConfig(
        theta,
        "yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=_number(scaling, "beta_fast", 32.0) or 32.0,
        beta_slow=_number(scaling, "beta_slow", 1.0) or 1.0,
        truncate=bool(scaling.get("truncate", True)),
        attention_factor=_number(scaling, "attention_factor", _yarn_attention_factor(scaling, factor)),
    )


def _yarn_attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    mscale, all_dims = _number(scaling, "mscale", 0.0), _number(scaling, "mscale_all_dim", 0.0)
    if mscale and all_dims:
        return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dims)
    return yarn_magnitude(factor)


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's scaling of cos and sin for a context `factor` times longer (arXiv 2309.00071, §3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"config.json has no {key!r}; is it the configuration of a language model?")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"config.json: {key!r} must be a whole number, got {value!r}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"config.json has no {key!r}, which its rope scaling needs")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _HUGE:
        raise ConfigError(f"config.json: {key!r} must be a number, got {value!r}")
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value not in (None, True, False):
        raise ConfigError(f"config.json: {key!r} must be true or false, got {value!r}")
    return bool(value)


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"config.json: {key!r} must be an object, got {value!r}")
    return value or {}


def _token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise ConfigError(f"config.json: {key!r} must be a token id or a list of them, got {value!r}")
    return tuple(values)
