"""Leftovers: what a model's files hold and nothing has read. It may be ignored for a reason, or the model is refused.

A setting or a tensor that is read past gives a model that runs, and is wrong. So the readers of configurations and of
weights end here with whatever they did not ask for:

- a tensor is refused, unless it is in TENSORS_IGNORED;
- a GGUF key of the architecture is refused, unless it is in GGUF_IGNORED, or GGUF_RULES allow its value, or its value
  is zero, false or empty: something the model does not have;
- a key of config.json is refused if HF_RULES say that it changes what a model computes. Others are ignored, as
  transformers ignores them: that file also holds training settings and notes of all kinds of tools.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.errors import ConfigError
from interlace.models.config import ModelConfig
from interlace.models.settings import Settings

_MAX_NAMES, _MAX_VALUE_CHARS = 5, 60  # shown in a message
_HUGE = 1e30  # beyond any value of a configuration, and within a float

Test = Callable[[Any, ModelConfig], bool]


@dataclass(frozen=True)
class Rule:
    """Keys, what they do, and which values change nothing; zero, false, null and empty ones are always among them."""

    keys: str  # a regular expression for the whole key
    does: str  # "the model ..."
    changes_nothing: Test = lambda value, config: False
    off: bool = True  # whether zero, false, null and empty values change nothing

    def allows(self, value: Any, config: ModelConfig) -> bool:
        return (self.off and not value) or value is None or self.changes_nothing(value, config)


def _among(*values: Any) -> Test:
    return lambda value, config: value in values


def _is(quantity: Callable[[ModelConfig], float]) -> Test:
    """Equal to a quantity of the model, to the precision of a GGUF file's floats."""
    return lambda value, config: (
        isinstance(value, int | float)
        and abs(value) < _HUGE
        and math.isclose(value, quantity(config), rel_tol=1e-6)
    )


def _all_are(kind: Callable[[ModelConfig], Any]) -> Test:
    return lambda value, config: isinstance(value, list) and all(one == kind(config) for one in value)


def _dense(test: Test) -> Test:
    """Keys about the choice of experts change nothing where there are no experts."""
    return lambda value, config: not config.num_experts or test(value, config)


_ATTENTION_SCALE = _is(lambda config: config.head_dim**-0.5)
_WINDOW = _all_are(lambda c: "full_attention" if c.sliding_window is None else "sliding_attention")
_NORM_TOPK = _dense(lambda value, config: value == config.norm_topk)

HF_RULES = (
    Rule(r"quantization|compression_config", "stores its weights quantised"),
    Rule(r"(\w+_)?bias|use_\w*bias", "has biases in places where this family has none"),
    Rule(r"hidden_activation|activation(_function)?|act_fn|(mlp|ffn)_act\w*", "has another activation than SiLU",
         _among("silu", "swish", "swiglu")),
    Rule(r"(mlp|ffn)_type", "has another MLP than a gated one", _among("gated", "swiglu", "glu")),
    Rule(r"(use_)?(gated_mlp|glu)|gated", "has an MLP without a gate", _among(True), off=False),
    Rule(r"(layer_?)?norm(alization)?(_(type|class))?", "has another norm than RMSNorm",
         _among("rms", "rmsnorm", "rms_norm", "RMSNorm")),
    Rule(r"(use_)?qk_(layer)?norm\w*", "norms queries and keys", lambda value, config: config.qk_norm),
    Rule(r"(use_)?(post|sandwich|peri|sub)_\w*norm", "has further norms"),
    Rule(r"\w*add_unit_offset|apply_layernorm_1p|layernorm_zero_centered_gamma", "adds one to its norms' weights"),
    Rule(r"\w*soft_?cap(ping)?", "caps its scores or logits"),
    Rule(r"(qkv_)?clip_qkv|qkv_clip|clamp_kqv", "clips its queries, keys and values"),
    Rule(r"query_pre_attn_scalar", "scales its attention otherwise", _is(lambda config: config.head_dim)),
    Rule(r"(attention|attn|softmax)_(multiplier|scale|scaling)", "scales its attention otherwise", _ATTENTION_SCALE),
    Rule(r"dim_model_base", "scales its logits", _is(lambda config: config.hidden_size)),
    Rule(r"scale_depth", "scales its residual stream", _is(lambda config: config.num_layers**0.5)),
    Rule(r"(logits?|lm_head|residual|embeddings?|embed|attention_(in|out)|key|query|mlp|output|hidden|router)"
         r"_(multiplier|scale|scaling)s?|scale_(emb|embeddings?|logits)", "scales its activations", _among(1)),
    Rule(r"(use_)?mup\w*", "scales its activations (muP)"),
    Rule(r"rotary_(pct|percent|emb_fraction)|rope_(pct|percent|fraction)", "rotates a part of each head", _among(1)),
    Rule(r"rotary_(dim|ndims)|rope_dim", "rotates a part of each head", _is(lambda config: config.head_dim)),
    Rule(r"rope_interleaved|rotary_(emb_)?interleaved", "pairs the dimensions that it rotates otherwise"),
    Rule(r"no_rope_layers", "has layers without rotary embedding", _all_are(lambda config: 1)),
    Rule(r"no_rope_layer_interval|nope_layer_interval", "has layers without rotary embedding",
         lambda value, config: isinstance(value, int) and value > config.num_layers),
    Rule(r"use_(rope|rotary)", "has no rotary embedding", _among(True), off=False),
    Rule(r"(use_)?alibi\w*", "has ALiBi in place of rotary embedding"),
    Rule(r"position_embedding_type|pos(ition)?_(emb|encoding)\w*", "has other position embeddings than rotary ones",
         _among("rope", "rotary")),
    Rule(r"rope_(ratio|scaling_factor)", "stretches its rotary embedding", _among(1)),
    Rule(r"(rope_local_base_freq|(local|global)_rope_theta)", "rotates some layers otherwise"),
    Rule(r"use_(dynamic_ntk|logn_attn)", "changes its attention with the length of a text"),
    Rule(r"sliding_window", "sees a part of the text only",
         lambda value, config: isinstance(value, int) and value >= config.max_position),
    Rule(r"use_sliding_window", "has no sliding window", lambda value, config: value is True
         or config.sliding_window is None or config.sliding_window >= config.max_position, off=False),
    Rule(r"layer_types", "has layers of several kinds", _WINDOW),
    Rule(r"sliding_window_pattern|interleaved_sliding_window|global_attn_every_n_layers|attention_(chunk|window)_size"
         r"|local_attention\w*", "sees a part of the text in some layers"),
    Rule(r"attn_temperature_tuning", "scales its attention with the position"),
    Rule(r"(use_)?(attention|attn)_sinks?", "has attention sinks"),
    Rule(r"(use_)?(attn|attention)(_output)?_gate|gated_attention", "gates its attention"),
    Rule(r"(is_)?causal", "lets a token see those behind it", _among(True), off=False),
    Rule(r"(use_)?bidirectional\w*|(is_)?prefix_lm", "lets a token see those behind it"),
    Rule(r"is_encoder_decoder|add_cross_attention|cross_attention_layers", "attends to an encoder"),
    Rule(r"(use_)?parallel_(attn|attention|residual|block)\w*", "runs attention and MLP side by side"),
    Rule(r"(q|kv|o)_lora_rank|qk_(nope|rope)_head_dim", "compresses its keys and values (MLA)"),
    Rule(r"v_head_dim", "has values of another size than its keys", _is(lambda config: config.head_dim)),
    Rule(r"multi_query(_attention)?", "has one KV head", lambda value, config: config.num_kv_heads == 1),
    Rule(r"(num|n)_(kv_heads|query_groups|head_kv)|multi_query_group_num", "has another number of KV heads",
         _is(lambda config: config.num_kv_heads)),
    Rule(r"num_kv_shared_layers|kv_shar\w+|cla_share_factor", "shares keys and values between layers"),
    Rule(r"mamba\w*|ssm_\w+|linear_attn\w*|full_attention_interval|attn_layer_(period|offset)",
         "has layers without attention"),
    Rule(r"(moe_)?num_(local_|moe_)?experts|n_routed_experts|moe_num_experts", "has experts",
         lambda value, config: value == max(1, config.num_experts)),
    Rule(r"(n|num)_shared_experts|shared_expert_intermediate_size", "has experts that every token runs through"),
    Rule(r"norm_topk_prob", "does not norm its experts' weights", _NORM_TOPK, off=False),
    Rule(r"scoring_func|(moe_)?router_score_\w+", "scores its experts otherwise", _dense(_among("softmax"))),
    Rule(r"routed_scaling_factor|n_group|topk_group", "chooses or scales its experts otherwise", _dense(_among(1))),
    Rule(r"num_loops|total_ut_steps|num_recurren\w+", "runs its layers several times", _among(1)),
    Rule(r"pruned_heads", "lacks heads"),
    Rule(r"architectures", "is no language model that continues a text", lambda value, config:
         not re.search("bidirectional|classification|reward", str(value), re.IGNORECASE)),
)  # fmt: skip

GGUF_RULES = (
    Rule(r"attention\.causal", "lets a token see those behind it", _among(True), off=False),
    Rule(r"attention\.scale", "scales its attention otherwise", _ATTENTION_SCALE),
    Rule(r"attention\.layer_norm_epsilon", "has another norm than RMSNorm", _is(lambda config: config.rms_norm_eps)),
    Rule(r"(logit|residual|embedding)_scale|attention\.(output|value)_scale", "scales its activations", _among(1)),
    Rule(r"hidden_activation", "has another activation than SiLU", _among("silu", "swish", "swiglu")),
    Rule(r"rope\.scaling\.yarn_(attn|ext)_factor", "scales its rotary embedding otherwise",
         lambda value, config: config.rope.scaling != "yarn" or value == 1, off=False),
    Rule(r"expert_feed_forward_length", "has experts of another size", _dense(_is(lambda c: c.intermediate_size))),
    Rule(r"expert_weights_norm", "does not norm its experts' weights", _NORM_TOPK, off=False),
    Rule(r"expert_gating_func", "scores its experts otherwise", _dense(_among(1))),
    Rule(r"expert_(weights_scale|group_(used_)?count)", "chooses or scales its experts otherwise", _dense(_among(1))),
    Rule(r"interleave_moe_layer_step|moe_every_n_layers", "has experts in some layers", _among(1)),
    Rule(r"embedding_length_out", "has outputs of another size", _is(lambda config: config.hidden_size)),
)  # fmt: skip

GGUF_IGNORED = {
    r"vocab_size": "the embedding's rows are the truth",
    r"rope\.scaling\.finetuned": "a note on how the weights came about",
    r"rope\.scaling\.(original_context_length|yarn_beta_(fast|slow))": "read for YaRN; without it they do nothing",
    r"rope\.dimension_sections": "the three positions of a token of text are one",
    r"tensor_data_layout": "a note on the order of the rows, which is the same in all files of an architecture",
    r"pooling_type|classifier\..*": "for embeddings and classes, which are not asked for",
}

TENSORS_IGNORED = {
    r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "computed from the configuration",
}


def refuse_unread_hf_settings(settings: Settings, config: ModelConfig) -> None:
    """Raises ConfigError for keys of a config.json that were not read and change what the model computes."""
    refused = []
    for key, value in settings.unread():
        rule = _rule_for(key, HF_RULES)
        if rule is not None and not rule.allows(value, config):
            refused.append(f"{key!r} is {_shown(value)}: the model {rule.does}")
    if refused:
        raise ConfigError(
            f"config.json asks for what is not supported for {config.family} models: {listed(refused, '; ')}. "
            "Where the model is meant to run without, remove the key"
        )


def refuse_unread_gguf_settings(settings: Settings, architecture: str, config: ModelConfig) -> None:
    """Raises ConfigError for keys of the architecture that were not read and may change what the model computes."""
    refused = []
    for key, value in settings.unread():
        name = key.removeprefix(f"{architecture}.")
        if name == key or any(re.fullmatch(ignored, name) for ignored in GGUF_IGNORED):
            continue
        rule = _rule_for(name, GGUF_RULES) or Rule(name, "has something that is not known here")
        if not rule.allows(value, config):
            refused.append(f"{key!r} is {_shown(value)}: the model {rule.does}")
    if refused:
        raise ConfigError(
            f"the GGUF metadata ask for what is not supported for {config.family} models: {listed(refused, '; ')}"
        )


def refuse_unread_tensors(
    tensors: Iterable[str], read: Collection[str | None], file_of: Callable[[str], Path]
) -> None:
    """Raises ConfigError for tensors of a model's files that are neither among `read` nor ignored for a reason."""
    unread = sorted(
        tensor
        for tensor in tensors
        if tensor not in read and not any(re.fullmatch(ignored, tensor) for ignored in TENSORS_IGNORED)
    )
    if unread:
        hint = " (attention_bias and mlp_bias say that there are biases)"
        raise ConfigError(
            f"{file_of(unread[0])}: got tensors that the configuration does not call for: {listed(unread, ', ')}. "
            "Answers without them would be wrong: correct the configuration"
            f"{hint if any(name.endswith('_proj.bias') for name in unread) else ''}, or use files without them"
        )


def _rule_for(key: str, rules: Iterable[Rule]) -> Rule | None:
    return next((rule for rule in rules if re.fullmatch(rule.keys, key)), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}…"


def listed(items: list[str], separator: str) -> str:
    """The first few of them, and how many more there are."""
    more = [f"and {len(items) - _MAX_NAMES} more"] if len(items) > _MAX_NAMES else []
    return separator.join(items[:_MAX_NAMES] + more)
