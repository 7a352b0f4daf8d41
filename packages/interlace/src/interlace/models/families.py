"""Model families as data: one frozen record each. The readers of files and the decoder hold the mechanism.

A record says how the two file formats name what a model of the family is made of, and what an absent key means. To add
a family, add a record here, and a tiny random model of it to the tests. Imports nothing of the models.

Canonical names of a layer's weights: `attention_norm` and `mlp_norm` are the norms before the two sublayers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from interlace.errors import ConfigError

ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")  # a layer's matrices

# Tensors of the whole model, and of a layer behind "model.layers.3." or "blk.3.", by canonical name. Names that share
# a tensor lie in it one after the other, in the order of the record. "{expert}" is the number of an expert.
Tensors = Mapping[str, str]

HF_MODEL: Tensors = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
HF_LAYER: Tensors = {
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    **{part: f"self_attn.{part}_proj.weight" for part in ATTENTION},
    **{f"{part}_bias": f"self_attn.{part}_proj.bias" for part in ATTENTION},
    **{f"{part}_norm": f"self_attn.{part}_norm.weight" for part in "qk"},
    **{part: f"mlp.{part}_proj.weight" for part in MLP},
    **{f"{part}_bias": f"mlp.{part}_proj.bias" for part in MLP},
}

GGUF_MODEL: Tensors = {"embed": "token_embd.weight", "norm": "output_norm.weight", "lm_head": "output.weight"}
GGUF_LAYER: Tensors = {
    "attention_norm": "attn_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    **{part: f"attn_{part}.weight" for part in "qkv"},
    "o": "attn_output.weight",
    **{f"{part}_bias": f"attn_{part}.bias" for part in "qkv"},
    "o_bias": "attn_output.bias",
    **{f"{part}_norm": f"attn_{part}_norm.weight" for part in "qk"},
    **{part: f"ffn_{part}.weight" for part in MLP},
    **{f"{part}_bias": f"ffn_{part}.bias" for part in MLP},
    "router": "ffn_gate_inp.weight",
    # All experts in one tensor (experts, rows, columns). Oldest files have one tensor each: see `gguf_places`.
    **{f"experts.{part}": f"ffn_{part}_exps.weight" for part in MLP},
}


@dataclass(frozen=True)
class BiasFlag:
    """A key of config.json that says whether some matrices have a bias."""

    key: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """The keys of config.json that say in which layers a token sees the last `sliding_window` tokens only.

    "all": in every layer. "from_layer": with `use_sliding_window`, from layer `max_window_layers` on, or as
    `layer_types` say.
    """

    layers: Literal["all", "from_layer"]
    size: int | None = None  # where `sliding_window` is absent; None: no window


@dataclass(frozen=True)
class HfExperts:
    """The keys of config.json that are about experts, with what they mean where they are absent."""

    num_experts: int  # `num_local_experts`, or `num_experts`: transformers knows them by both names
    experts_per_token: int  # `num_experts_per_tok`


@dataclass(frozen=True)
class HfFormat:
    """The family in config.json and safetensors files. Absent keys mean what they mean to transformers."""

    model_type: str
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_position: int = 2048
    num_kv_heads: int | None = None  # None: num_heads, which null means in every family
    head_dim: int | None = None  # None: hidden_size / num_heads
    biases: tuple[str, ...] = ()  # in every model of the family
    bias_flags: tuple[BiasFlag, ...] = ()
    window: Window | None = None
    experts: HfExperts | None = None
    layer: Tensors = field(default_factory=lambda: HF_LAYER)


@dataclass(frozen=True)
class GgufFormat:
    """The family in GGUF files, as llama.cpp's converter writes them."""

    architecture: str
    permutes_heads: bool = (
        False  # the converter stores rows j and d / 2 + j of q's and k's heads side by side
    )
    layer: Tensors = field(default_factory=lambda: GGUF_LAYER)


@dataclass(frozen=True)
class Family:
    """One family of models: how its files say what they hold, and what all its models have in common."""

    name: str
    hf: HfFormat
    gguf: GgufFormat | None  # None: its GGUF files are those of another family
    qk_norm: bool = False  # the heads of q and k are normed before they are rotated


_ATTENTION_BIAS, _MLP_BIAS = BiasFlag("attention_bias", ATTENTION), BiasFlag("mlp_bias", MLP)
_QWEN_WINDOW = Window("from_layer", size=4096)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "llama",
            HfFormat("llama", bias_flags=(_ATTENTION_BIAS, _MLP_BIAS)),
            GgufFormat("llama", permutes_heads=True),
        ),
        Family(
            "mistral",
            HfFormat("mistral", max_position=131_072, num_kv_heads=8, window=Window("all", size=4096)),
            None,
        ),
        Family(
            "qwen2",
            HfFormat(
                "qwen2",
                max_position=32_768,
                num_kv_heads=32,
                # No bias on the attention's output: `attention_bias` says nothing about it, as in transformers.
                biases=("q", "k", "v"),
                bias_flags=(BiasFlag("attention_bias", ("q", "k", "v")),),
                window=_QWEN_WINDOW,
            ),
            GgufFormat("qwen2"),
        ),
        Family(
            "qwen3",
            HfFormat(
                "qwen3",
                max_position=32_768,
                num_kv_heads=32,
                head_dim=128,
                bias_flags=(_ATTENTION_BIAS,),
                window=_QWEN_WINDOW,
            ),
            GgufFormat("qwen3"),
            qk_norm=True,
        ),
        Family(
            "mixtral",
            HfFormat(
                "mixtral",
                rope_theta=1_000_000.0,
                rms_norm_eps=1e-5,
                max_position=131_072,
                num_kv_heads=8,
                window=Window("all"),
                experts=HfExperts(num_experts=8, experts_per_token=2),
                layer={
                    **HF_LAYER,
                    "router": "block_sparse_moe.gate.weight",
                    "experts.gate": "block_sparse_moe.experts.{expert}.w1.weight",
                    "experts.up": "block_sparse_moe.experts.{expert}.w3.weight",
                    "experts.down": "block_sparse_moe.experts.{expert}.w2.weight",
                },
            ),
            GgufFormat("llama", permutes_heads=True),
        ),
    )
}


def family_of(name: str) -> Family:
    """The record of a family. Raises ConfigError for a name that no family has."""
    if name not in FAMILIES:
        raise ConfigError(f"unknown family {name!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
