"""ModelConfig: read as transformers reads it, and refused with a reason where the decoder cannot follow."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from interlace.errors import ConfigError
from interlace.models.config import BIASABLE, RopeConfig, weight_shapes
from interlace.models.hf.config import read_hf_config
from support.hf_configs import LLAMA, longrope, read


def test_absent_keys_take_transformers_defaults() -> None:
    config = read_hf_config(
        {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "rms_norm_eps")}
    )
    assert config.num_kv_heads == 4
    assert config.head_dim == 16
    assert config.rms_norm_eps == 1e-6
    assert config.rope == RopeConfig(10_000.0)
    assert not config.tie_word_embeddings


def test_old_and_new_spelling_of_rope_scaling_agree() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = read(rope_theta=500_000.0, rope_scaling={"rope_type": "llama3", **scaling})
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **scaling})
    assert old == new
    assert old.rope.scaling == "llama3"


@pytest.mark.parametrize(
    ("kind", "changes", "context"),
    [
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 256}, 1024),  # as Qwen2.5 documents it
        ("yarn", {"factor": 4.0}, 1024),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ("yarn", {"factor": 2.0, "original_max_position_embeddings": 32}, 256),
        ("yarn", {"original_max_position_embeddings": 64}, 256),
        ("linear", {"factor": 2.5}, 640),
        ("linear", {"factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ("dynamic", {"factor": 2.0}, 512),
        ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 256),
        ("longrope", {"factor": 8.0, **longrope()["rope_scaling"]}, 256),
    ],
)
def test_scaling_stretches_the_context_by_its_factor(
    kind: str, changes: dict[str, Any], context: int
) -> None:
    """Many files name the context before it is stretched, some the one after. Here it is 256."""
    assert read(rope_scaling={**changes, "rope_type": kind}).max_position == context


def test_an_absent_context_is_the_familys() -> None:
    lengths = {
        family: read_hf_config({**LLAMA, "model_type": family, "max_position_embeddings": None}).max_position
        for family in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "phi3", "qwen2_moe")
    }
    assert lengths == {
        "llama": 2048,
        "mistral": 131_072,
        "qwen2": 32_768,
        "qwen3": 32_768,
        "mixtral": 131_072,
        "phi3": 4096,
        "qwen2_moe": 32_768,
    }


def test_rope_scaling_replaces_rope_parameters() -> None:
    """As transformers: whoever edits an old key into a new file means it."""
    both = read(
        rope_theta=5000.0,
        rope_parameters={"rope_type": "default", "rope_theta": 7000.0},
        rope_scaling={"type": "linear", "factor": 2.0},
    )
    assert both.rope == RopeConfig(5000.0, "linear", factor=2.0)
    assert read(rope_scaling={}, rope_parameters={"rope_theta": 7000.0}).rope == RopeConfig(7000.0)


def test_an_original_context_outside_the_scaling_wins() -> None:
    inside = longrope(original_max_position_embeddings=128)
    assert read(original_max_position_embeddings=64, **inside) == read(**longrope())


def test_notes_and_nulls_in_rope_scaling_are_no_settings() -> None:
    plain = read(rope_scaling={"rope_type": "yarn", "factor": 2.0})
    noted = read(
        rope_scaling={"type": "yarn", "factor": 2.0, "finetuned": True, "mscale": None, "alpha": None}
    )
    assert plain == noted
    assert read(rope_scaling={"rope_type": "default", "factor": 1.0}) == read()
    su = longrope(rope_type="su")
    assert read(**su) == read(**longrope())


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        (2, None, (2,)),
        (None, 2, (2,)),
        (2, [5, 7], (5, 7, 2)),
        ([2, 5], 5, (5, 2)),
        (None, None, ()),
        (-1, None, ()),
        (2, -1, (2,)),
        ([-1, 3], [], (3,)),
    ],
)
def test_the_ends_of_both_files_count(config: Any, generation: Any, ids: tuple[int, ...]) -> None:
    values = read_hf_config({**LLAMA, "eos_token_id": config}, {"eos_token_id": generation})
    assert values.eos_token_ids == ids


@pytest.mark.parametrize("value", [True, "2", 2.0, -2, [2, "x"], [[2]], {}])
def test_an_end_that_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="'eos_token_id' must be a token id or a list of them"):
        read(eos_token_id=value)
    with pytest.raises(ConfigError, match=r"generation_config\.json: 'eos_token_id' must be a token id"):
        read_hf_config(LLAMA, {"eos_token_id": value})


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mixtral"}, None),
        ({"model_type": "llama", "sliding_window": 32, "use_sliding_window": False}, None),
        ({"model_type": "llama", "sliding_window": 256}, None),
        ({"model_type": "qwen2", "sliding_window": 32}, None),
        (
            {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2},
            None,
        ),
        (
            {"model_type": "qwen3", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0},
            32,
        ),
    ],
)
def test_sliding_window_follows_the_family(changes: dict[str, Any], window: int | None) -> None:
    assert read(**changes).sliding_window == window


def test_a_window_may_be_of_some_layers_only() -> None:
    window = {"sliding_window": 8, "use_sliding_window": True}
    listed = read(model_type="qwen2", layer_types=["sliding_attention", "full_attention"], **window)
    assert [listed.window_of(layer) for layer in range(2)] == [8, None]
    counted = read(model_type="qwen2", max_window_layers=1, **window)
    assert [counted.window_of(layer) for layer in range(2)] == [None, 8]


def test_experts_have_their_own_size_and_layers() -> None:
    experts = {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    config = read(**experts, num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    assert config.dense_layers == (0, 2, 3, 4)
    assert [config.mlp_size(layer) for layer in range(6)] == [112, 48, 112, 112, 112, 48]
    shapes = weight_shapes(config)
    assert shapes["layers.3.up"] == (112, 64)
    assert shapes["layers.5.experts.3.down"] == (64, 48)
    assert not config.norm_topk
    assert read(**experts, norm_topk_prob=True).norm_topk
    shared = read(**{**experts, "model_type": "qwen2_moe"})
    assert (shared.shared_intermediate_size, shared.biases) == (5632, ("q", "k", "v"))


def test_gemma_keys_and_what_their_absence_means() -> None:
    second = read(model_type="gemma2", head_dim=16)
    assert (second.attention_softcap, second.logit_softcap, second.query_pre_attn_scalar) == (
        50.0,
        30.0,
        256.0,
    )
    assert (second.tie_word_embeddings, second.embedding_scale, second.norms) == (True, 8.0, "around")
    assert [second.window_of(layer) for layer in range(2)] == [4096, None]
    plain = read(model_type="gemma2", head_dim=16, attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (plain.attention_softcap, plain.logit_softcap) == (None, None)
    third = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 12,
        "rope_scaling": {"type": "linear", "factor": 8},
    }
    old = read(**third, sliding_window=32, sliding_window_pattern=6, rope_theta=5e5, rope_local_base_freq=5e3)
    assert (old.rope, old.local_rope) == (RopeConfig(5e5, "linear", factor=8.0), RopeConfig(5e3))
    assert (old.full_layers, old.max_position) == ((5, 11), 256)


def test_families_have_their_own_parts() -> None:
    assert read(model_type="qwen2").biases == ("q", "k", "v")
    assert read(model_type="qwen3").qk_norm
    assert read(model_type="qwen3").head_dim == 128
    mixtral = read(model_type="mixtral", num_local_experts=4)
    assert (mixtral.num_experts, mixtral.experts_per_token) == (4, 2)
    assert weight_shapes(mixtral)["layers.1.experts.3.down"] == (64, 112)
    assert weight_shapes(mixtral)["layers.0.router"] == (4, 64)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "mixtral"])
def test_absent_kv_heads_mean_what_they_mean_to_transformers(family: str) -> None:
    from transformers import AutoConfig

    heads = {"num_attention_heads": 64, "hidden_size": 1024, "head_dim": 16}
    for changes in ({}, {"num_key_value_heads": 2}):
        values = (
            {k: v for k, v in LLAMA.items() if k not in ("model_type", "num_key_value_heads")}
            | heads
            | changes
        )
        expected = AutoConfig.for_model(family, **values).num_key_value_heads
        assert read_hf_config({**values, "model_type": family}).num_kv_heads == expected
    values["num_key_value_heads"] = None
    assert read_hf_config({**values, "model_type": family}).num_kv_heads == 64


@pytest.mark.parametrize(
    ("changes", "biases"),
    [
        ({}, ()),
        ({"attention_bias": False, "mlp_bias": None}, ()),
        ({"attention_bias": True}, ("q", "k", "v", "o")),
        ({"mlp_bias": True}, ("gate", "up", "down")),
        ({"attention_bias": True, "mlp_bias": True}, BIASABLE),
        ({"model_type": "qwen2", "attention_bias": True}, ("q", "k", "v")),
        ({"model_type": "qwen3", "attention_bias": True}, ("q", "k", "v", "o")),
    ],
)
def test_biases_are_those_that_transformers_adds(changes: dict[str, Any], biases: tuple[str, ...]) -> None:
    config = read(**changes)
    assert config.biases == biases
    assert {name for name in weight_shapes(config) if name.endswith("bias")} == {
        f"layers.{layer}.{part}_bias" for layer in range(2) for part in biases
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gpt2"}, "supported are llama, mistral, qwen2, qwen3, mixtral"),
        (
            {"num_key_value_heads": 3},
            r"json: num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)",
        ),
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"hidden_size": "64"}, "'hidden_size' must be a whole number of 64 bits, got '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"hidden_size": 66}, "not a multiple of num_attention_heads"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported, expected 'silu'"),
        ({"tie_word_embeddings": "false"}, "'tie_word_embeddings' must be true or false, got 'false'"),
        ({"attention_bias": "yes"}, "'attention_bias' must be true or false, got 'yes'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (
            {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}},
            "partial_rotary_factor 0.5",
        ),
        ({"rope_scaling": {"rope_type": "mrope"}}, "'mrope' is not supported; supported are default, linear"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "no 'factor'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1e3}}, "'dynamic' with 'alpha'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "beta_fast": 3}},
            "'llama3' with 'beta_fast'",
        ),
        ({"rope_scaling": {"factor": 4.0}}, "has 'factor' and no rope_type; add the one that is meant"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "'default' with 'factor'"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "has 'full_attention' and no rope_type",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'short_factor' must be a list of numbers, got None"),
        (longrope(short_factor=[1.0] * 7), "7 short divisors, expected one for each frequency: .* = 8"),
        (longrope(long_factor=[1.0] * 7 + [0.0]), "divisors must be positive numbers"),
        (longrope(short_factor=[1e-300] * 8), "divisors must be positive numbers"),
        (longrope(original_max_position_embeddings=10**400), "must be a whole number of 64 bits, got 1000"),
        (longrope(original_max_position_embeddings=2**63), "must be a whole number of 64 bits, got 9223372"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 1e20}},
            "max_position_embeddings must be at most 2147483647",
        ),
        (longrope(long_factor=[1.0] * 7 + ["x"]), "'long_factor' must be a number, got 'x'"),
        (
            longrope(original_max_position_embeddings=1),
            "original_max_position_embeddings of at least 2, got 1",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "no 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor must be positive"),
        ({"rope_scaling": [1]}, "'rope_scaling' must be an object"),
        ({"rope_theta": 0}, "theta must be greater than 1"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ({"eos_token_id": "</s>"}, "'eos_token_id' must be a token id"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' must be a number"),
        (
            {"model_type": "qwen2_moe", "use_sliding_window": True, "sliding_window": 8},
            "no layer_types, which must say which layers have the window",
        ),
        ({"model_type": "gemma2", "hidden_activation": "relu"}, "hidden_activation 'relu' is not supported"),
        ({"model_type": "gemma2", "attn_logit_softcapping": -1.0}, "attn_logit_softcapping must be positive"),
        (
            {"model_type": "gemma3_text", "sliding_window_pattern": 0},
            "'sliding_window_pattern' must be at least 1",
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}},
            "rope_parameters has 'rope_theta'",
        ),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
            "model_type 'gemma3' .* Its part for texts is 'gemma3_text', which is supported: use a checkpoint of that",
        ),
        ({"model_type": "llava", "text_config": {"model_type": "gpt2"}}, "gemma3_text$"),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3},
            r"num_experts_per_tok must be between 1 and num_local_experts \(2\), got 3",
        ),
        ({"model_type": "qwen3_moe", "num_experts": -1}, "num_experts must be between 0 and"),
        ({"model_type": "qwen3_moe", "moe_intermediate_size": 0}, "moe_intermediate_size must be at least 1"),
        (
            {"model_type": "qwen3_moe", "mlp_only_layers": [0], "intermediate_size": 0},
            ", and intermediate_size must be at least 1 where layers are dense",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["x", "y"]},
            "'x', which is not supp",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]},
            "has 1 layers",
        ),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "'decoder_sparse_step' must be at least 1"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": "all"}, "'mlp_only_layers' must be a list of layers"),
        (
            {"model_type": "phi3", "partial_rotary_factor": 0.75},
            "partial_rotary_factor 0.75 is not supported",
        ),
    ],
)
def test_what_the_decoder_cannot_follow_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(**changes)


def test_importing_the_configuration_imports_no_torch() -> None:
    code = "import sys, json, interlace.models.config, interlace.models.sources; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"torch", "numpy", "transformers", "tokenizers", "huggingface_hub", "gguf"} & set(modules)
