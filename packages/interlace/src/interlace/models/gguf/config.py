"""Reads the metadata of a GGUF file into a ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from interlace.errors import ConfigError
from interlace.models.config import BIASABLE, ModelConfig, RopeConfig, check_num_layers, context_length
from interlace.models.families import FAMILIES, Family, GgufFormat
from interlace.models.field_error import keys_of
from interlace.models.gguf.rope import SHORT_DIVISORS, read_gguf_rope, with_divisors
from interlace.models.leftovers import refuse_unread_gguf_settings
from interlace.models.settings import Settings
from interlace.models.tokenization.ends import gguf_end_ids
from interlace.models.tokenization.metadata import special_token_ids


def read_gguf_config(
    fields: Mapping[str, Any],
    tensor_shapes: Mapping[str, tuple[int, ...]],
    read_vector: Callable[[str], tuple[float, ...]] = lambda _tensor: (),
) -> ModelConfig:
    """Reads a file's metadata, its tensors' shapes, and the values of its small tensors.

    Raises ConfigError for an unknown architecture, missing keys, or values the decoder does not have.
    """
    values = _Values(fields, _architecture(fields))
    keys = {name: f"{values.architecture}.{key}" for name, key in _KEYS.items()}
    with keys_of("GGUF metadata", keys):
        config = _model_config(values, tensor_shapes, read_vector)
    refuse_unread_gguf_settings(values.fields, values.architecture, config)
    return config


_KEYS = {  # of the architecture, by the fields of a ModelConfig
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position": "context_length",
    "sliding_window": "attention.sliding_window",
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
    "num_experts": "expert_count",
    "experts_per_token": "expert_used_count",
    "shared_intermediate_size": "expert_shared_feed_forward_length",
}


def _model_config(
    values: _Values,
    tensor_shapes: Mapping[str, tuple[int, ...]],
    read_vector: Callable[[str], tuple[float, ...]],
) -> ModelConfig:
    num_experts = values.integer("expert_count", 0)
    family, form = _family(values.architecture, num_experts)
    hidden_size, num_heads = values.integer("embedding_length"), values.integer("attention.head_count")
    positions = _positions(values, form, tensor_shapes, read_vector)
    num_layers = values.integer("block_count")
    check_num_layers(num_layers)
    window, full_layers = _window(values, form, num_layers)
    return ModelConfig(
        **family.config_fields(hidden_size),
        **_experts(values, form, num_experts),
        vocab_size=_vocab_size(values, tensor_shapes),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=values.integer("attention.head_count_kv", num_heads),
        head_dim=_head_dim(values, hidden_size, num_heads),
        rms_norm_eps=values.number("attention.layer_norm_rms_epsilon"),
        **positions,
        **_scores(values, form, hidden_size, num_heads),
        tie_word_embeddings="output.weight" not in tensor_shapes,
        biases=_biases(tensor_shapes, form, num_experts),
        sliding_window=window,
        full_layers=full_layers,
        eos_token_ids=gguf_end_ids(values.fields),
        bos_token_id=next(iter(special_token_ids(values.fields, "bos")), None),
    )


def _experts(values: _Values, form: GgufFormat, num_experts: int) -> dict[str, Any]:
    """The fields of a ModelConfig that are about the MLP and the experts."""
    experts = form.experts
    if experts is None or not num_experts:
        return {"intermediate_size": values.integer("feed_forward_length")}
    used = values.integer("expert_used_count")
    found = {"num_experts": num_experts, "experts_per_token": used, "norm_topk": experts.norm_topk}
    if not experts.have_own_size:
        return {**found, "intermediate_size": values.integer("feed_forward_length")}
    dense_size = values.integer("feed_forward_length", 0)
    found["intermediate_size"] = values.integer("expert_feed_forward_length", dense_size // max(1, used))
    if experts.has_shared:
        found["shared_intermediate_size"] = values.integer("expert_shared_feed_forward_length", dense_size)
    return found


def _positions(
    values: _Values,
    form: GgufFormat,
    tensor_shapes: Mapping[str, tuple[int, ...]],
    read_vector: Callable[[str], tuple[float, ...]],
) -> dict[str, Any]:
    """The fields of a ModelConfig that are about positions and their rotation."""
    max_position = values.integer("context_length")
    rope = read_gguf_rope(values, max_position, _scaling_of(form, tensor_shapes))
    rope = with_divisors(rope, tensor_shapes, read_vector)
    if form.local_rope_theta is None:
        return {"max_position": context_length(rope, max_position), "rope": rope}
    local_rope = RopeConfig(values.number("rope.freq_base_swa", form.local_rope_theta))
    return {"max_position": max_position, "rope": rope, "local_rope": local_rope}


def _scaling_of(form: GgufFormat, tensor_shapes: Mapping[str, object]) -> str:
    """The kind of rotary scaling that holds where no key names one."""
    return "longrope" if form.longrope_by_tensors and SHORT_DIVISORS in tensor_shapes else "linear"


def _window(values: _Values, form: GgufFormat, num_layers: int) -> tuple[int | None, tuple[int, ...]]:
    """The sliding window, and the layers that have none though the others have one."""
    window = form.window
    size = values.integer("attention.sliding_window", window.size or 0) if window else 0
    if window is None or not size:
        return None, ()
    if window.layers != "but_every":
        return size, ()
    every = values.integer("attention.sliding_window_pattern", window.every)
    if every < 1:
        raise ConfigError(f"GGUF metadata 'attention.sliding_window_pattern' must be at least 1, got {every}")
    full = tuple(layer for layer in range(num_layers) if (layer + 1) % every == 0)
    return (None, ()) if len(full) == num_layers else (size, full)


def _scores(values: _Values, form: GgufFormat, hidden_size: int, num_heads: int) -> dict[str, Any]:
    """The fields of a ModelConfig that are about attention scores and logits. A cap of 0 is none."""
    found: dict[str, Any] = {}
    if form.softcaps is not None:
        caps = form.softcaps
        found["attention_softcap"] = values.number("attn_logit_softcapping", caps.attention or 0.0) or None
        found["logit_softcap"] = values.number("final_logit_softcapping", caps.logits or 0.0) or None
    if form.wide_scale_layers and values.integer("block_count") == form.wide_scale_layers:
        found["query_pre_attn_scalar"] = hidden_size / max(1, num_heads)
    return found


class _Values:
    """The fields of one architecture, checked."""

    def __init__(self, fields: Mapping[str, Any], architecture: str) -> None:
        self.fields, self.architecture = Settings(fields), architecture

    def text(self, key: str, default: str) -> str:
        name = f"{self.architecture}.{key}"
        value = self.fields.get(name, default)
        if not isinstance(value, str):
            raise ConfigError(f"GGUF metadata {name!r} must be a text, got {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        name = f"{self.architecture}.{key}"
        value = self.fields.get(name, default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]  # one for each layer, all the same
        if value is None:
            raise ConfigError(f"the GGUF metadata has no {name!r}; the file is incomplete")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"GGUF metadata {name!r} must be one number for all layers, got {value!r}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not isinstance(value, int):
            raise ConfigError(
                f"GGUF metadata '{self.architecture}.{key}' must be a whole number, got {value!r}"
            )
        return value


def _architecture(fields: Mapping[str, Any]) -> str:
    kind = fields.get("general.type", "model")
    if kind != "model":
        raise ConfigError(
            f"the GGUF file is of type {kind!r}, expected 'model'; name the file of the model itself"
        )
    architecture = fields.get("general.architecture")
    known = list(dict.fromkeys(family.gguf.architecture for family in FAMILIES.values() if family.gguf))
    if not isinstance(architecture, str) or architecture not in known:
        raise ConfigError(
            f"unknown architecture {architecture!r} in the GGUF metadata; supported are "
            f"{', '.join(known)} (llama covers Llama, Mistral and Mixtral)"
        )
    return architecture


def _family(architecture: str, num_experts: int) -> tuple[Family, GgufFormat]:
    """The family of a known architecture: of two that share it, the one with experts where there are any."""
    found = [
        (family, family.gguf)
        for family in FAMILIES.values()
        if family.gguf and family.gguf.architecture == architecture
    ]
    return next((pair for pair in found if bool(pair[1].experts) == bool(num_experts)), found[0])


def _biases(
    tensor_shapes: Mapping[str, tuple[int, ...]], form: GgufFormat, num_experts: int
) -> tuple[str, ...]:
    """The matrices with a bias: no metadata say so, the tensors are there or not."""
    parts = [part for part in BIASABLE if part in "qkvo" or not num_experts]
    found = {
        tensor.partition(".")[2].partition(".")[2] for tensor in tensor_shapes if tensor.startswith("blk.")
    }
    return tuple(part for part in parts if form.layer[f"{part}_bias"] in found)


def _vocab_size(values: _Values, tensor_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The embedding's rows are the truth: some files pad it beyond the tokenizer's vocabulary."""
    shape = tensor_shapes.get("token_embd.weight")
    return shape[0] if shape else values.integer("vocab_size")


def _head_dim(values: _Values, hidden_size: int, num_heads: int) -> int:
    if num_heads < 1:
        raise ConfigError(f"GGUF metadata 'attention.head_count' must be at least 1, got {num_heads}")
    head_dim = values.integer("attention.key_length", hidden_size // num_heads)
    value_dim = values.integer("attention.value_length", head_dim)
    rotary = values.integer("rope.dimension_count", head_dim)
    if not head_dim == value_dim == rotary:
        raise ConfigError(
            f"heads of {head_dim} key and {value_dim} value dimensions, {rotary} of them rotated, are not "
            "supported: all three must be equal"
        )
    return head_dim
