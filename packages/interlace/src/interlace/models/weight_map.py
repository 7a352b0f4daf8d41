"""The weight map: where each canonical weight lies in a file, for the two formats models are published in.

A map gives, for a canonical name ("layers.3.q", see `weight_shapes`), the places it may lie, best first.
A new family that keeps one of these naming schemes needs nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A tensor of a file, or one expert's matrix in a tensor (experts, rows, columns) of all."""

    tensor: str
    expert: int | None = None


_HF_TOP = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "lm_head": "lm_head.weight"}

_HF_LAYER = {
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
    **{part: f"self_attn.{part}_proj.weight" for part in "qkvo"},
    **{f"{part}_bias": f"self_attn.{part}_proj.bias" for part in "qkvo"},
    **{f"{part}_norm": f"self_attn.{part}_norm.weight" for part in "qk"},
    **{part: f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    **{f"{part}_bias": f"mlp.{part}_proj.bias" for part in ("gate", "up", "down")},
    "router": "block_sparse_moe.gate.weight",
}

_HF_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}  # Mixtral's names

_GGUF_TOP = {"embed": "token_embd.weight", "norm": "output_norm.weight", "lm_head": "output.weight"}

_GGUF_LAYER = {
    "input_norm": "attn_norm.weight",
    "post_norm": "ffn_norm.weight",
    **{part: f"attn_{part}.weight" for part in "qkv"},
    "o": "attn_output.weight",
    **{f"{part}_bias": f"attn_{part}.bias" for part in "qkv"},
    "o_bias": "attn_output.bias",
    **{f"{part}_norm": f"attn_{part}_norm.weight" for part in "qk"},
    **{part: f"ffn_{part}.weight" for part in ("gate", "up", "down")},
    **{f"{part}_bias": f"ffn_{part}.bias" for part in ("gate", "up", "down")},
    "router": "ffn_gate_inp.weight",
}


_HF_BASE = "model."  # what precedes a tensor's name, unless the decoder was saved without its output head


def hf_places(name: str) -> list[Place]:
    """Where transformers' safetensors keep the weight called `name` here."""
    tensor = _hf_tensor(name)
    return [Place(found) for found in dict.fromkeys((tensor, tensor.removeprefix(_HF_BASE)))]


def _hf_tensor(name: str) -> str:
    match name.split("."):
        case [top]:
            return _HF_TOP[top]
        case ["layers", layer, "experts", expert, part]:
            return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{_HF_EXPERT[part]}.weight"
        case ["layers", layer, part]:
            return f"model.layers.{layer}.{_HF_LAYER[part]}"
    raise KeyError(name)


def gguf_layer_tensor(part: str) -> str:
    """The tensor that holds a part of a layer, as it is called behind "blk.3."."""
    return _GGUF_LAYER[part]


def gguf_places(name: str) -> list[Place]:
    """Where llama.cpp's files keep it. Experts are stacked in one tensor; oldest files have one each."""
    match name.split("."):
        case [top]:
            return [Place(_GGUF_TOP[top])]
        case ["layers", layer, "experts", expert, part]:
            stacked = Place(f"blk.{layer}.ffn_{part}_exps.weight", int(expert))
            return [stacked, Place(f"blk.{layer}.ffn_{part}.{expert}.weight")]
        case ["layers", layer, part]:
            return [Place(f"blk.{layer}.{_GGUF_LAYER[part]}")]
    raise KeyError(name)
