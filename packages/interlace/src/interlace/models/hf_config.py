"""Reads a Hugging Face config.json into a ModelConfig. Absent keys mean what they mean to transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.errors import ConfigError
from interlace.models.config import ModelConfig, context_length
from interlace.models.families import FAMILIES, Family, HfExperts, HfFormat, Window
from interlace.models.hf_rope import read_hf_rope
from interlace.models.hf_values import flag, integer, mapping, number
from interlace.models.leftovers import refuse_unread_hf_settings
from interlace.models.settings import Settings
from interlace.models.token_ids import as_token_ids


def read_hf_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Reads the contents of a config.json (and of generation_config.json: the eos ids of both count).

    Raises ConfigError for an unknown architecture, missing keys, or values the decoder does not have.
    """
    config = settings = Settings(config)
    generation = generation or {}
    family = _family(config)
    defaults = family.hf
    _refuse_what_the_decoder_lacks(config)
    hidden_size, num_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    max_position = integer(config, "max_position_embeddings", defaults.max_position)
    rope = read_hf_rope(config, defaults.rope_theta, max_position)
    num_layers = integer(config, "num_hidden_layers")
    found = ModelConfig(
        family=family.name,
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
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(config, defaults.window, num_layers),
        **_experts(config, defaults.experts),
        eos_token_ids=tuple(dict.fromkeys(_token_ids(config, generation, "eos_token_id"))),
        bos_token_id=next(iter(_token_ids(config, generation, "bos_token_id")), None),
    )
    refuse_unread_hf_settings(settings, found)
    return found


def _family(config: Mapping[str, Any]) -> Family:
    for family in FAMILIES.values():
        if config.get("model_type") == family.hf.model_type:
            return family
    known = ", ".join(family.hf.model_type for family in FAMILIES.values())
    raise ConfigError(
        f"unknown architecture: config.json has model_type {config.get('model_type')!r} and architectures "
        f"{config.get('architectures')!r}; supported are {known}"
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


def _biases(config: Mapping[str, Any], defaults: HfFormat) -> tuple[str, ...]:
    found = defaults.biases
    for bias in defaults.bias_flags:
        if flag(config, bias.key):
            found += tuple(part for part in bias.parts if part not in found)
    return found


def _num_kv_heads(config: Mapping[str, Any], defaults: HfFormat, num_heads: int) -> int:
    is_absent = "num_key_value_heads" not in config
    default = defaults.num_kv_heads if is_absent and defaults.num_kv_heads else num_heads
    return integer(config, "num_key_value_heads", default)


def _head_dim(config: Mapping[str, Any], defaults: HfFormat, hidden_size: int, num_heads: int) -> int:
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


def _experts(config: Mapping[str, Any], absent: HfExperts | None) -> dict[str, int]:
    """The fields of a ModelConfig that are about experts. transformers knows their number by two names."""
    if absent is None:
        return {}
    named = integer(config, "num_experts", absent.num_experts)
    return {
        "num_experts": integer(config, "num_local_experts", named),
        "experts_per_token": integer(config, "num_experts_per_tok", absent.experts_per_token),
    }


def _sliding_window(config: Mapping[str, Any], window: Window | None, num_layers: int) -> int | None:
    if window is None:
        if config.get("use_sliding_window") is False:
            config.get("sliding_window")  # read, that is: it is said to be unused
        return None
    size = config.get("sliding_window", window.size)
    if size is None or (window.layers == "from_layer" and not _is_in_all_layers(config, num_layers)):
        return None
    return integer({"sliding_window": size}, "sliding_window")


def _is_in_all_layers(config: Mapping[str, Any], num_layers: int) -> bool:
    """Qwen's window holds from layer `max_window_layers` on: here it must be all layers or none."""
    if not flag(config, "use_sliding_window"):
        return False
    first = integer(config, "max_window_layers", 28)
    kinds = config.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds)
    ):
        raise ConfigError(f"config.json: 'layer_types' must be a list of names, got {kinds!r}")
    kinds = kinds or ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    if set(kinds) in ({"full_attention"}, {"sliding_attention"}):
        return "sliding_attention" in kinds
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
