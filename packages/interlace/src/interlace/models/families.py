"""Model families as data: one frozen record each. The readers of files and the decoder hold the mechanism.

A record says how the two file formats name what a model of the family is made of, and what an absent key means. To add
a family, add a record here, and a tiny random model of it to the tests. Imports nothing of the models.

Canonical names of a layer's weights: `attention_norm` and `mlp_norm` are the norms before the two sublayers,
`attention_post_norm` and `mlp_post_norm` those of what a sublayer gives, before it joins the residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from interlace.errors import ConfigError

ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")  # a layer's matrices

Activation = Literal["silu", "gelu_tanh"]
NormPlacement = Literal["before", "after", "around"]

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
    default: bool = False


@dataclass(frozen=True)
class Window:
    """In which layers a token sees the last `sliding_window` tokens only, itself included.

    "all": in every layer. In config.json `layer_types` say it for the others. Where they are absent, "from_layer" means
    from layer `max_window_layers` on, "but_every" means in all but every n-th, and "as_listed" has no rule.
    """

    layers: Literal["all", "from_layer", "as_listed", "but_every"]
    size: int | None = None  # where `sliding_window` is absent; None: no window
    is_flagged: bool = False  # only with `use_sliding_window`
    every: int = 0  # of "but_every": every n-th layer sees the whole text; `sliding_window_pattern`


@dataclass(frozen=True)
class Softcaps:
    """Bounds of attention scores and of logits where their keys are absent; None: no bound."""

    attention: float | None = None
    logits: float | None = None


@dataclass(frozen=True)
class HfExperts:
    """The keys of config.json that are about experts, with what they mean where they are absent."""

    num_experts: int  # `num_local_experts`, or `num_experts`: transformers knows them by both names
    experts_per_token: int  # `num_experts_per_tok`
    size: int | None = (
        None  # `moe_intermediate_size`; None: `intermediate_size`, which is then no dense layer's
    )
    shared_size: int | None = None  # `shared_expert_intermediate_size`; None: there is no such expert
    norm_topk: bool | None = None  # `norm_topk_prob`; None: the chosen ones' weights always sum to 1


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
    tie_word_embeddings: bool = False
    norm_offset: float = 0.0  # what the files' norm weights lack
    activation_key: str = "hidden_act"
    query_pre_attn_scalar: float | None = None  # None: no such key, scores are scaled by the heads' size
    softcaps: Softcaps | None = None  # None: no such keys
    local_rope_theta: float | None = None  # of layers with a window; None: they rotate as the others
    original_max_position: int | None = None  # of rotary scaling; None: max_position
    window: Window | None = None
    experts: HfExperts | None = None
    layer: Tensors = field(default_factory=lambda: HF_LAYER)


@dataclass(frozen=True)
class GgufExperts:
    """The experts of a family in GGUF files."""

    have_own_size: bool = False  # `expert_feed_forward_length`; else `feed_forward_length`
    has_shared: bool = False  # `expert_shared_feed_forward_length`
    norm_topk: bool = True  # llama.cpp's code says it, no key does


@dataclass(frozen=True)
class GgufFormat:
    """The family in GGUF files, as llama.cpp's converter writes them."""

    architecture: str
    permutes_heads: bool = False  # rows j and d / 2 + j of each head of q and k are stored side by side
    window: Window | None = Window("all")
    experts: GgufExperts | None = None
    softcaps: Softcaps | None = None
    local_rope_theta: float | None = None
    wide_scale_layers: int = (
        0  # a model of so many layers scales scores by hidden_size / num_heads: no key says it
    )
    longrope_by_tensors: bool = (
        False  # divisors for short and long texts are used though no key says "longrope"
    )
    layer: Tensors = field(default_factory=lambda: GGUF_LAYER)


@dataclass(frozen=True)
class Family:
    """One family of models: how its files say what they hold, and what all its models have in common."""

    name: str
    hf: HfFormat
    gguf: GgufFormat | None  # None: its GGUF files are those of another family
    activation: Activation = "silu"
    norms: NormPlacement = "before"  # of the sublayers, "after" them, or both
    qk_norm: bool = False  # the heads of q and k are normed before they are rotated
    qk_norm_over_heads: bool = False  # all heads of q as one vector, and all of k
    scales_embedding: bool = False  # by the square root of hidden_size

    def config_fields(self, hidden_size: int) -> dict[str, Any]:
        """The fields of a ModelConfig that no key of a file decides."""
        return {
            "family": self.name,
            "activation": self.activation,
            "norms": self.norms,
            "qk_norm": self.qk_norm,
            "qk_norm_over_heads": self.qk_norm_over_heads,
            "embedding_scale": hidden_size**0.5 if self.scales_embedding and hidden_size > 0 else 1.0,
        }


_ATTENTION_BIAS, _MLP_BIAS = BiasFlag("attention_bias", ATTENTION), BiasFlag("mlp_bias", MLP)
_QWEN_WINDOW = Window("from_layer", size=4096, is_flagged=True)
_QWEN_EXPERTS = {
    "router": "mlp.gate.weight",
    **{f"experts.{part}": f"mlp.experts.{{expert}}.{part}_proj.weight" for part in MLP},
}

_HF_POST_NORMS = {
    "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}
_GEMMA_LAYER = {**HF_LAYER, **_HF_POST_NORMS, "mlp_norm": "pre_feedforward_layernorm.weight"}
_GGUF_POST_NORMS = {
    "attention_post_norm": "post_attention_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
}

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
            GgufFormat("llama", permutes_heads=True, experts=GgufExperts()),
        ),
        Family(
            "phi3",
            HfFormat(
                "phi3",
                rms_norm_eps=1e-5,
                max_position=4096,
                original_max_position=4096,
                window=Window("all"),
                layer={
                    **HF_LAYER,
                    **dict.fromkeys("qkv", "self_attn.qkv_proj.weight"),
                    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj.weight"),
                },
            ),
            GgufFormat(
                "phi3",
                longrope_by_tensors=True,
                layer={
                    **GGUF_LAYER,
                    **dict.fromkeys("qkv", "attn_qkv.weight"),
                    **dict.fromkeys(("gate", "up"), "ffn_up.weight"),
                },
            ),
        ),
        Family(
            "qwen2_moe",
            HfFormat(
                "qwen2_moe",
                max_position=32_768,
                num_kv_heads=16,
                bias_flags=(BiasFlag("qkv_bias", ("q", "k", "v"), default=True),),
                window=Window("as_listed", size=4096, is_flagged=True),
                experts=HfExperts(60, 4, size=1408, shared_size=5632, norm_topk=False),
                layer={
                    **HF_LAYER,
                    **_QWEN_EXPERTS,
                    **{f"shared.{part}": f"mlp.shared_expert.{part}_proj.weight" for part in MLP},
                    "shared_gate": "mlp.shared_expert_gate.weight",
                },
            ),
            GgufFormat(
                "qwen2moe",
                experts=GgufExperts(have_own_size=True, has_shared=True, norm_topk=False),
                layer={
                    **GGUF_LAYER,
                    **{f"shared.{part}": f"ffn_{part}_shexp.weight" for part in MLP},
                    "shared_gate": "ffn_gate_inp_shexp.weight",
                },
            ),
        ),
        Family(
            "qwen3_moe",
            HfFormat(
                "qwen3_moe",
                max_position=32_768,
                num_kv_heads=4,
                bias_flags=(_ATTENTION_BIAS,),
                window=Window("all", size=4096, is_flagged=True),
                experts=HfExperts(128, 8, size=768, norm_topk=False),
                layer={**HF_LAYER, **_QWEN_EXPERTS},
            ),
            GgufFormat("qwen3moe", experts=GgufExperts(have_own_size=True)),
            qk_norm=True,
        ),
        Family(
            "olmo2",
            HfFormat(
                "olmo2",
                rms_norm_eps=1e-5,
                bias_flags=(_ATTENTION_BIAS,),
                layer={**HF_LAYER, **_HF_POST_NORMS},
            ),
            GgufFormat("olmo2", window=None, layer={**GGUF_LAYER, **_GGUF_POST_NORMS}),
            norms="after",
            qk_norm=True,
            qk_norm_over_heads=True,
        ),
        Family(
            "gemma2",
            HfFormat(
                "gemma2",
                max_position=8192,
                num_kv_heads=4,
                head_dim=256,
                bias_flags=(_ATTENTION_BIAS,),
                tie_word_embeddings=True,
                norm_offset=1.0,
                activation_key="hidden_activation",
                query_pre_attn_scalar=256,
                softcaps=Softcaps(attention=50.0, logits=30.0),
                window=Window("but_every", size=4096, every=2),
                layer=_GEMMA_LAYER,
            ),
            GgufFormat(
                "gemma2",
                softcaps=Softcaps(attention=50.0, logits=30.0),
                window=Window("but_every", size=4096, every=2),
                wide_scale_layers=46,
                layer={**GGUF_LAYER, **_GGUF_POST_NORMS},
            ),
            activation="gelu_tanh",
            norms="around",
            scales_embedding=True,
        ),
        Family(
            "gemma3",
            HfFormat(
                "gemma3_text",
                rope_theta=1_000_000.0,
                local_rope_theta=10_000.0,
                max_position=131_072,
                num_kv_heads=4,
                head_dim=256,
                bias_flags=(_ATTENTION_BIAS,),
                tie_word_embeddings=True,
                norm_offset=1.0,
                activation_key="hidden_activation",
                query_pre_attn_scalar=256,
                softcaps=Softcaps(),
                window=Window("but_every", size=4096, every=6),
                layer=_GEMMA_LAYER,
            ),
            GgufFormat(
                "gemma3",
                local_rope_theta=10_000.0,
                softcaps=Softcaps(),
                window=Window("but_every", every=6),
                wide_scale_layers=62,
                layer={**GGUF_LAYER, **_GGUF_POST_NORMS},
            ),
            activation="gelu_tanh",
            norms="around",
            qk_norm=True,
            scales_embedding=True,
        ),
    )
}


def family_of(name: str) -> Family:
    """The record of a family. Raises ConfigError for a name that no family has."""
    if name not in FAMILIES:
        raise ConfigError(f"unknown family {name!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
