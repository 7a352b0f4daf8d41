"""Writes the GGUF file of a tiny Hugging Face model, with the names that llama.cpp's converter takes from gguf."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from support.tiny_models import write_gguf_vocabulary

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)(\..*)\.weight")
_KEYS = {  # a key of the architecture, and the key of config.json that it is
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def write_gguf(directory: Path, path: Path, architecture: str) -> None:
    """Converts the model in `directory` to a float32 GGUF file of `architecture` with the tiny models' tokenizer."""
    config = json.loads((directory / "config.json").read_text())
    config.setdefault("num_experts", config.get("num_local_experts"))
    assert not config.get("mlp_only_layers"), (
        "no GGUF architecture has dense layers among layers with experts"
    )
    writer = gguf.GGUFWriter(path, architecture)
    for key, name in _KEYS.items():
        value = config.get(name)
        if value:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(
                f"{architecture}.{key}", value
            )
    write_gguf_vocabulary(writer)
    tensors = load_file(directory / "model.safetensors")
    _add_rope(writer, architecture, config)
    for name, values in _converted(architecture, tensors, config["num_hidden_layers"]).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_rope(writer: gguf.GGUFWriter, architecture: str, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        original, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
        magnitude = (1 + np.log(longest / original) / np.log(original)) ** 0.5
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(magnitude))
        for kind in ("short", "long"):
            writer.add_tensor(
                f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32)
            )


def _converted(
    architecture: str, tensors: dict[str, np.ndarray[Any, Any]], num_layers: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors by their names in the file: experts stacked, and Gemma's norms with the one that they lack."""
    kind = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, num_layers)
    stacks: dict[str, list[np.ndarray[Any, Any]]] = {}
    for name in sorted(tensors, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        if match := _EXPERT.fullmatch(name):
            stacks.setdefault(f"{match[1]}{match[3]}.weight", []).append(tensors[name])
    alone = {name: values for name, values in tensors.items() if not _EXPERT.fullmatch(name)}
    converted = {}
    for name, values in {**alone, **{name: np.stack(stack) for name, stack in stacks.items()}}.items():
        is_lacking = architecture.startswith("gemma") and name.endswith("norm.weight")
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        converted[found] = values + np.float32(1) if is_lacking else values
    return converted
