"""Reads a Hugging Face config.json into a ModelConfig. Absent keys mean what they mean to transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from interlace.errors import ConfigError
from interlace.models.config import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    ModelConfig,
    check_num_layers,
    context_length,
)
from interlace.models.families import FAMILIES, Family, HfExperts, HfFormat, Window
from interlace.models.field_error import keys_of
from interlace.models.hf.rope import read_hf_rope, read_hf_ropes
from interlace.models.hf.values import flag, integer, mapping, number
from interlace.models.leftovers import refuse_unread_hf_settings
from interlace.models.settings import Settings
from interlace.models.token_ids import as_token_ids


def read_hf_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Reads the contents of a config.json (and of generation_config.json: the eos ids of both count).

    Raises ConfigError for an unknown architecture, missing keys, or values the decoder does not have.
    """
    settings, generation = Settings(config), generation or {}
    family = _family(settings)
    with keys_of("config.json", _keys(settings, family.hf)):
        found = _model_config(settings, generation, family)
    refuse_unread_hf_settings(settings, found)
    return found


def _keys(config: Mapping[str, Any], defaults: HfFormat) -> dict[str, str]:
    """The keys of config.json by the fields of a ModelConfig, where these are called otherwise."""
    keys = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "max_position": "max_position_embeddings",
        "experts_per_token": "num_experts_per_tok",
        "shared_intermediate_size": "shared_expert_intermediate_size",
        "dense_intermediate_size": "intermediate_size",
        "attention_softcap": "attn_logit_softcapping",
        "logit_softcap": "final_logit_softcapping",
    }
    if defaults.experts is not None:
        keys["num_experts"] = "num_local_experts" if "num_local_experts" in config else "num_experts"
        if defaults.experts.size is not None:
            keys["intermediate_size"] = "moe_intermediate_size"
    return keys


def _model_config(config: Mapping[str, Any], generation: Mapping[str, Any], family: Family) -> ModelConfig:
    defaults = family.hf
    _check_activation(config, family)
    _refuse_quantization(config)
    hidden_size, num_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    positions = _positions(config, defaults)
    num_layers = integer(config, "num_hidden_layers")
    check_num_layers(num_layers)
    window, full_layers = _window(config, defaults.window, num_layers)
    return ModelConfig(
        **family.config_fields(hidden_size),
        vocab_size=integer(config, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, defaults, num_heads),
        head_dim=_head_dim(config, defaults, hidden_size, num_heads),
        rms_norm_eps=number(config, "rms_norm_eps", defaults.rms_norm_eps),
        **positions,
        **_scores(config, defaults),
        tie_word_embeddings=flag(config, "tie_word_embeddings", defaults.tie_word_embeddings),
        biases=_biases(config, defaults),
        sliding_window=window,
        full_layers=full_layers,
        **_mlp(config, defaults.experts, num_layers),
        eos_token_ids=tuple(dict.fromkeys(_token_ids(config, generation, "eos_token_id"))),
        bos_token_id=next(iter(_token_ids(config, generation, "bos_token_id")), None),
    )


def _family(config: Mapping[str, Any]) -> Family:
    for family in FAMILIES.values():
        if config.get("model_type") == family.hf.model_type:
            return family
    known = [family.hf.model_type for family in FAMILIES.values()]
    raise ConfigError(
        f"unknown architecture: config.json has model_type {config.get('model_type')!r} and architectures "
        f"{config.get('architectures')!r}; supported are {', '.join(known)}{_text_part(config, known)}"
    )


def _text_part(config: Mapping[str, Any], known: Collection[str]) -> str:
    """Advice for a model of texts and images whose text model is of a known kind."""
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, Mapping) else None
    if kind not in known:
        return ""
    return f". Its part for texts is {kind!r}, which is supported: use a checkpoint of that part alone"


_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}  # transformers' names


def _check_activation(config: Mapping[str, Any], family: Family) -> None:
    key, names = family.hf.activation_key, _ACTIVATIONS[family.activation]
    config.get("hidden_act")  # read, that is: where the key is another one, transformers does not look at it
    activation = config.get(key) or names[0]
    if activation not in names:
        raise ConfigError(f"{key} {activation!r} is not supported, expected {names[0]!r}")


def _scores(config: Mapping[str, Any], defaults: HfFormat) -> dict[str, Any]:
    """The fields of a ModelConfig that are about attention scores and logits."""
    found: dict[str, Any] = {}
    if defaults.query_pre_attn_scalar is not None:
        found["query_pre_attn_scalar"] = number(
            config, "query_pre_attn_scalar", defaults.query_pre_attn_scalar
        )
    if defaults.softcaps is not None:
        found["attention_softcap"] = _softcap(config, "attn_logit_softcapping", defaults.softcaps.attention)
        found["logit_softcap"] = _softcap(config, "final_logit_softcapping", defaults.softcaps.logits)
    return found


def _softcap(config: Mapping[str, Any], key: str, absent: float | None) -> float | None:
    """A null in the file means none, whatever an absent key means."""
    value = config.get(key, absent)
    return None if value is None else number({key: value}, key)


def _refuse_quantization(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        method = mapping(config, "quantization_config").get("quant_method")
        raise ConfigError(
            f"config.json asks for quantised weights (quant_method {method!r}): only float32, bfloat16 and "
            "float16 safetensors are supported; use the unquantised model or a GGUF file"
        )


def _positions(config: Mapping[str, Any], defaults: HfFormat) -> dict[str, Any]:
    """The fields of a ModelConfig that are about positions and their rotation."""
    max_position = integer(config, "max_position_embeddings", defaults.max_position)
    theta = defaults.rope_theta
    if defaults.local_rope_theta is not None:
        rope, local_rope = read_hf_ropes(config, theta, defaults.local_rope_theta, max_position)
        return {"max_position": max_position, "rope": rope, "local_rope": local_rope}
    rope = read_hf_rope(config, theta, max_position, defaults.original_max_position)
    return {"max_position": context_length(rope, max_position), "rope": rope}


def _biases(config: Mapping[str, Any], defaults: HfFormat) -> tuple[str, ...]:
    found = defaults.biases
    for bias in defaults.bias_flags:
        if flag(config, bias.key, bias.default):
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


def _mlp(config: Mapping[str, Any], absent: HfExperts | None, num_layers: int) -> dict[str, Any]:
    """The fields of a ModelConfig that are about the MLP and the experts."""
    if absent is None:
        return {"intermediate_size": integer(config, "intermediate_size")}
    found: dict[str, Any] = {
        # transformers knows their number by two names.
        "num_experts": integer(
            config, "num_local_experts", integer(config, "num_experts", absent.num_experts)
        ),
        "experts_per_token": integer(config, "num_experts_per_tok", absent.experts_per_token),
    }
    if absent.norm_topk is not None:
        found["norm_topk"] = flag(config, "norm_topk_prob", absent.norm_topk)
    if absent.shared_size is not None:
        found["shared_intermediate_size"] = integer(
            config, "shared_expert_intermediate_size", absent.shared_size
        )
    if absent.size is None:
        return {**found, "intermediate_size": integer(config, "intermediate_size")}
    dense_layers = _dense_layers(config, num_layers)
    return {
        **found,
        "intermediate_size": integer(config, "moe_intermediate_size", absent.size),
        "dense_layers": dense_layers,
        "dense_intermediate_size": integer(config, "intermediate_size") if dense_layers else 0,
    }


def _dense_layers(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """The layers without experts: all but every n-th (`decoder_sparse_step`), and those in `mlp_only_layers`."""
    step = integer(config, "decoder_sparse_step", 1)
    listed = config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
        raise ConfigError(f"config.json: 'mlp_only_layers' must be a list of layers, got {listed!r}")
    if step < 1:
        raise ConfigError(f"config.json: 'decoder_sparse_step' must be at least 1, got {step}")
    return tuple(layer for layer in range(num_layers) if layer in listed or (layer + 1) % step)


def _window(
    config: Mapping[str, Any], window: Window | None, num_layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """The sliding window, and the layers that have none though the others have one."""
    if window is None:
        if config.get("use_sliding_window") is False:
            config.get("sliding_window")  # read, that is: it is said to be unused
        return None, ()
    size = config.get("sliding_window", window.size)
    if size is None or (window.is_flagged and not flag(config, "use_sliding_window")):
        return None, ()
    size = integer({"sliding_window": size}, "sliding_window")
    full = () if window.layers == "all" else _full_layers(config, window, num_layers)
    return (None, ()) if len(full) == num_layers else (size, full)


def _full_layers(config: Mapping[str, Any], window: Window, num_layers: int) -> tuple[int, ...]:
    """The layers without a window: as `layer_types` say, or else by the family's rule."""
    kinds = config.get("layer_types")
    if kinds:
        _check_kinds(kinds, num_layers)
        return tuple(layer for layer, kind in enumerate(kinds) if kind == FULL_ATTENTION)
    if window.layers == "as_listed":
        raise ConfigError(
            "config.json has use_sliding_window and no layer_types, which must say which layers have the window; "
            'set "use_sliding_window": false for contexts no longer than the window'
        )
    if window.layers == "but_every":
        every = integer(
            config, "sliding_window_pattern", integer(config, "_sliding_window_pattern", window.every)
        )
        if every < 1:
            raise ConfigError(f"config.json: 'sliding_window_pattern' must be at least 1, got {every}")
        return tuple(layer for layer in range(num_layers) if (layer + 1) % every == 0)
    return tuple(range(min(num_layers, max(0, integer(config, "max_window_layers", 28)))))


def _check_kinds(kinds: Any, num_layers: int) -> None:
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ConfigError(f"config.json: 'layer_types' must be a list of names, got {kinds!r}")
    if unknown := sorted(set(kinds) - {FULL_ATTENTION, SLIDING_ATTENTION}):
        raise ConfigError(f"config.json: 'layer_types' has {unknown[0]!r}, which is not supported")
    if len(kinds) != num_layers:
        raise ConfigError(
            f"config.json: 'layer_types' has {len(kinds)} layers, expected num_hidden_layers, {num_layers}"
        )


def _token_ids(config: Mapping[str, Any], generation: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The ids under `key` in both files; those of generation_config.json, the file for generating, come first."""
    named = (("generation_config.json", generation), ("config.json", config))
    return tuple(
        token for name, values in named for token in as_token_ids(values.get(key), f"{name}: {key!r}")
    )
