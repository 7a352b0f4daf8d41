"""A part of a model's files that nothing reads is refused by name, unless it changes nothing."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.launch import start
from interlace.errors import ConfigError, CorruptFile
from interlace.models.gguf.config import read_gguf_config
from interlace.models.gguf.source import GgufSource
from interlace.models.hf.config import read_hf_config
from interlace.models.hf.source import SafetensorsSource
from interlace.models.leftovers import GGUF_RULES, HF_RULES
from interlace.models.settings import Settings
from support.tiny_models import make_gguf, make_model

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 331,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 4}


def test_settings_remember_what_was_asked_for() -> None:
    settings = Settings({"a": 1, "b": 2, "c": None})
    assert settings["a"] == 1
    assert settings.get("d", 5) == 5
    assert "c" in settings
    assert dict(settings.unread()) == {"b": 2}


# family's changes, key, a value that changes the mathematics, values that do not
HF_CASES: list[tuple[dict[str, Any], str, Any, list[Any]]] = [
    ({}, "quantization", {"bits": 4, "group_size": 64}, [None, {}]),
    ({}, "compression_config", {"quant_method": "compressed-tensors"}, [None]),
    ({}, "qkv_bias", True, [False]),
    ({"model_type": "mistral"}, "attention_bias", True, [False, None]),
    ({"model_type": "mistral"}, "mlp_bias", True, [False]),
    ({"model_type": "qwen3", "head_dim": 16}, "mlp_bias", True, [False]),
    ({}, "hidden_activation", "gelu_pytorch_tanh", ["silu", None]),
    ({}, "mlp_type", "relu2", ["gated"]),
    ({}, "use_glu", False, [True]),
    ({}, "norm_type", "layernorm", ["rmsnorm"]),
    ({}, "qk_norm", True, [False]),
    ({"model_type": "qwen3", "head_dim": 16}, "use_qk_norm", None, [True]),
    ({}, "use_post_norm", True, [False]),
    ({}, "norm_weight_add_unit_offset", True, [False]),
    ({}, "attn_logit_softcapping", 50.0, [None, 0]),
    ({}, "final_logit_softcapping", 30.0, [None]),
    ({}, "clip_qkv", 8.0, [None]),
    ({}, "query_pre_attn_scalar", 256, [16]),
    ({}, "attention_multiplier", 0.015625, [0.25]),
    ({}, "logits_scaling", 8.0, [1.0]),
    ({}, "logit_scale", 0.0625, [1]),
    ({}, "residual_multiplier", 0.22, [1.0]),
    ({}, "embedding_multiplier", 12.0, [1.0]),
    ({}, "scale_emb", 12, [1]),
    ({}, "scale_depth", 1.4, [2.0]),
    ({}, "dim_model_base", 256, [64]),
    ({}, "use_mup", True, [False]),
    ({}, "rotary_pct", 0.25, [1.0]),
    ({}, "rotary_dim", 8, [16]),
    ({}, "rope_interleaved", True, [False]),
    ({}, "no_rope_layers", [1, 1, 1, 0], [[1, 1, 1, 1], []]),
    ({}, "no_rope_layer_interval", 4, [5, None]),
    ({}, "alibi", True, [False]),
    ({}, "position_embedding_type", "learned", ["rope"]),
    ({}, "rope_ratio", 4.0, [1.0]),
    ({}, "local_rope_theta", 10_000.0, [None]),
    ({}, "use_rope", False, [True]),
    ({}, "use_logn_attn", True, [False]),
    ({}, "sliding_window", 32, [None, 256]),
    ({"model_type": "mistral", "sliding_window": 32}, "use_sliding_window", False, [True]),
    ({}, "layer_types", ["full_attention", "linear_attention"], [["full_attention"] * 4]),
    ({"model_type": "mistral"}, "layer_types", ["full_attention"] * 4, [["sliding_attention"] * 4]),
    ({"model_type": "qwen2"}, "layer_types", ["sliding_attention"] * 4, [["full_attention"] * 4]),
    ({}, "attention_chunk_size", 8192, [None]),
    ({}, "attn_temperature_tuning", True, [False]),
    ({}, "attention_sink", True, [False]),
    ({}, "is_causal", False, [True]),
    ({}, "use_bidirectional_attention", True, [False]),
    ({}, "is_encoder_decoder", True, [False]),
    ({}, "gated_attention", True, [False]),
    ({}, "use_parallel_residual", True, [False]),
    ({}, "kv_lora_rank", 512, [None]),
    ({}, "v_head_dim", 8, [16]),
    ({}, "num_kv_shared_layers", 2, [0]),
    ({}, "full_attention_interval", 4, [None]),
    ({}, "multi_query", True, [False]),
    ({}, "num_kv_heads", 4, [2]),
    ({}, "num_experts", 8, [0, 1]),
    ({}, "num_shared_experts", 1, [0]),
    (EXPERTS, "norm_topk_prob", False, [True]),
    (EXPERTS, "scoring_func", "sigmoid", ["softmax"]),
    (EXPERTS, "routed_scaling_factor", 2.5, [1.0]),
    ({}, "num_loops", 2, [1]),
    ({}, "architectures", ["LlamaBidirectionalModel"], [["LlamaForCausalLM"], ["LlamaModel"], None]),
    ({}, "pruned_heads", {"0": [1]}, [{}]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "key", "refused", "allowed"),
    HF_CASES,
    ids=[f"{c.get('model_type', '')}{k}" for c, k, *_ in HF_CASES],
)
def test_a_known_key_is_refused_where_it_changes_the_mathematics(
    changes: dict[str, Any], key: str, refused: Any, allowed: list[Any]
) -> None:
    plain = read_hf_config({**BASE, **changes})
    for value in allowed:
        assert read_hf_config({**BASE, **changes, key: value}) == plain
    if refused is not None:
        with pytest.raises(ConfigError, match=f"'{key}' is .*: the model "):
            read_hf_config({**BASE, **changes, key: refused})


def test_every_rule_has_a_case() -> None:
    for rule in HF_RULES:
        assert any(re.fullmatch(rule.keys, key) for _, key, *_ in HF_CASES), rule.keys
    for rule in GGUF_RULES:
        assert any(re.fullmatch(rule.keys, key) for _, key, *_ in GGUF_CASES), rule.keys


def test_what_transformers_writes_and_notes_of_tools_are_read_past() -> None:
    notes = {
        "architectures": ["LlamaForCausalLM"],
        "attention_dropout": 0.1,
        "dtype": "bfloat16",
        "initializer_range": 0.02,
        "pretraining_tp": 2,
        "torch_dtype": "float16",
        "transformers_version": "4.48.0",
        "unsloth_version": "2025.1",
        "use_cache": False,
        "_name_or_path": "somewhere",
    }
    assert read_hf_config({**BASE, **notes}) == read_hf_config(BASE)


def test_all_refused_keys_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"llama models: 'clip_qkv' is 8: .*; 'logit_scale' is 2: .*remove the key"
    ):
        read_hf_config({**BASE, "clip_qkv": 8, "logit_scale": 2})


GGUF_BASE: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 256,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 112,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
GGUF_EXPERTS = {"llama.expert_count": 4, "llama.expert_used_count": 2}
GGUF_YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
GGUF_CASES: list[tuple[dict[str, Any], str, Any, list[Any]]] = [
    ({}, "attention.causal", False, [True]),
    ({}, "attention.scale", 0.05, [0.25, 0.0]),
    ({}, "attention.layer_norm_epsilon", 1e-6, [1e-5]),
    ({}, "logit_scale", 0.25, [1.0]),
    ({}, "attention.value_scale", 0.5, [1.0]),
    ({}, "hidden_activation", "gelu", ["silu"]),
    (GGUF_YARN, "rope.scaling.yarn_ext_factor", 0.0, [1.0]),
    ({}, "rope.scaling.yarn_attn_factor", None, [1.2]),
    (GGUF_EXPERTS, "expert_feed_forward_length", 96, [112]),
    (GGUF_EXPERTS, "expert_weights_norm", False, [True]),
    (GGUF_EXPERTS, "expert_gating_func", 2, [1, 0]),
    (GGUF_EXPERTS, "expert_weights_scale", 2.5, [1.0, 0.0]),
    ({}, "interleave_moe_layer_step", 2, [1]),
    ({}, "embedding_length_out", 128, [64]),
    ({}, "attention.clamp_kqv", 8.0, [0.0]),
    ({}, "attn_logit_softcapping", 50.0, [0.0]),
    ({}, "attention.sliding_window_pattern", [True, False], [[], 0]),
    ({}, "a_key_of_tomorrow", 3, [False]),
    ({}, "vocab_size", None, [5000]),
    ({}, "rope.scaling.finetuned", None, [True]),
    ({}, "tensor_data_layout", None, ["Meta AI original pth"]),
    ({}, "pooling_type", None, [3]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "key", "refused", "allowed"), GGUF_CASES, ids=[key for _, key, *_ in GGUF_CASES]
)
def test_a_key_of_a_gguf_architecture_is_refused_where_it_may_change_the_mathematics(
    changes: dict[str, Any], key: str, refused: Any, allowed: list[Any]
) -> None:
    shapes = {"token_embd.weight": (331, 64)}
    fields = {**GGUF_BASE, **changes}
    for value in allowed:
        values = {**fields, f"llama.{key}": value}
        assert read_gguf_config(values, shapes) == read_gguf_config(fields, shapes)
    if refused is not None:
        with pytest.raises(ConfigError, match=rf"'llama\.{key}' is .*: the model "):
            read_gguf_config({**fields, f"llama.{key}": refused}, shapes)


def test_only_models_are_taken_for_models() -> None:
    with pytest.raises(ConfigError, match="of type 'adapter', expected 'model'"):
        read_gguf_config({**GGUF_BASE, "general.type": "adapter"}, {})


@pytest.mark.parametrize(
    "tensor",
    ["blk.0.attn_sub_norm.weight", "blk.0.post_attention_norm.weight", "blk.1.attn_q.weight", "output.bias"],
)
def test_a_gguf_tensor_that_nothing_reads_is_refused_by_name(tmp_path: Path, tensor: str) -> None:
    make_gguf(tmp_path / "model.gguf", extra={tensor: 256})
    with pytest.raises(ConfigError, match=rf"model\.gguf: got .* not call for: {re.escape(tensor)}\."):
        GgufSource(tmp_path / "model.gguf")


def test_settings_of_a_gguf_file_are_read_with_it(tmp_path: Path) -> None:
    make_gguf(tmp_path / "model.gguf", settings={"llama.logit_scale": 0.5})
    with pytest.raises(ConfigError, match=r"model\.gguf: .*'llama\.logit_scale' is 0\.5"):
        GgufSource(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("untied"), "llama_untied")


def rewritten(source: Path, target: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    """A copy of a model directory with tensors added or replaced, and other settings."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    file = target / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **settings}))
    return target


@pytest.mark.parametrize(
    "tensor",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.post_feedforward_layernorm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "lm_head.bias",
        "score.weight",
    ],
)
def test_a_tensor_that_nothing_reads_is_refused_by_name(tmp_path: Path, untied: Path, tensor: str) -> None:
    rewritten(untied, tmp_path, {tensor: torch.ones(64)})
    with pytest.raises(ConfigError, match=rf"model\.safetensors: got .* not call for: {re.escape(tensor)}\."):
        SafetensorsSource(tmp_path)


def test_many_unread_tensors_are_counted(tmp_path: Path, untied: Path) -> None:
    rewritten(untied, tmp_path, {f"extra.{number}": torch.ones(1) for number in range(9)})
    with pytest.raises(ConfigError, match=r"extra\.0, .*extra\.4, and 4 more\."):
        SafetensorsSource(tmp_path)


def test_frequencies_that_old_files_hold_are_computed_instead(tmp_path: Path, untied: Path) -> None:
    rewritten(untied, tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert SafetensorsSource(tmp_path).config == SafetensorsSource(untied).config


def test_an_output_head_that_is_not_the_embedding_is_used_and_mentioned(
    tmp_path: Path, untied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in transformers: what the file holds has the last word on `tie_word_embeddings`."""
    rewritten(untied, tmp_path, {}, tie_word_embeddings=True)
    source = SafetensorsSource(tmp_path)
    assert not source.config.tie_word_embeddings
    assert torch.equal(source.load("lm_head"), SafetensorsSource(untied).load("lm_head"))
    with caplog.at_level(logging.WARNING):
        start(EngineConfig(str(tmp_path), communicator="null", dtype="float32", num_kv_blocks=8)).close()
    assert [record.getMessage() for record in caplog.records] == list(source.notices)
    assert "tie_word_embeddings true, but the files hold 'lm_head.weight'" in caplog.text


def test_an_output_head_that_is_the_embedding_is_kept_once(tmp_path: Path, untied: Path) -> None:
    embedding = load_file(untied / "model.safetensors")["model.embed_tokens.weight"]
    rewritten(untied, tmp_path, {"lm_head.weight": embedding.clone()}, tie_word_embeddings=True)
    source = SafetensorsSource(tmp_path)
    assert source.config.tie_word_embeddings
    assert not source.has("lm_head")
    assert source.notices == ()


def test_a_missing_tensor_is_told_with_what_is_there_instead(tmp_path: Path, untied: Path) -> None:
    shutil.copytree(untied, tmp_path, dirs_exist_ok=True)
    tensors = load_file(untied / "model.safetensors")
    parts = [tensors.pop(f"model.layers.0.self_attn.{part}_proj.weight") for part in "qkv"]
    tensors["model.layers.0.self_attn.qkv_proj.weight"] = torch.cat(parts)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CorruptFile,
        match=r"'model\.layers\.0\.self_attn\.q_proj\.weight' .*The files hold model.*qkv_proj.weight, which it",
    ):
        SafetensorsSource(tmp_path)


def test_biases_without_a_word_in_the_configuration_are_told_how_to_be_announced(
    tmp_path: Path, untied: Path
) -> None:
    rewritten(untied, tmp_path, {"model.layers.0.self_attn.o_proj.bias": torch.ones(64)})
    with pytest.raises(ConfigError, match=r"o_proj\.bias\. .*attention_bias and mlp_bias say"):
        SafetensorsSource(tmp_path)
