"""ModelConfig from GGUF metadata."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import ConfigError, ModelError
from interlace.models.config import ModelConfig, RopeConfig
from interlace.models.gguf_config import with_divisors
from interlace.models.tokenization.gguf import tokenizer_from_gguf

SHAPES = {"token_embd.weight": (331, 64)}


def fields(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    values = {
        "context_length": 256,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 112,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    keyed = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": architecture, "tokenizer.ggml.eos_token_id": 2, **keyed}


def read(architecture: str = "llama", **changes: Any) -> ModelConfig:
    return ModelConfig.from_gguf(fields(architecture, **changes), SHAPES)


def test_architectures_become_families() -> None:
    assert read().family == "llama"
    assert read(expert_count=4, expert_used_count=2).family == "mixtral"
    assert read("qwen3").qk_norm


def test_an_output_tensor_unties_the_embedding() -> None:
    assert read().tie_word_embeddings
    assert not ModelConfig.from_gguf(fields(), {**SHAPES, "output.weight": (331, 64)}).tie_word_embeddings


def test_the_embedding_has_the_last_word_on_the_vocabulary() -> None:
    assert read(vocab_size=300).vocab_size == 331


def test_every_stop_token_counts() -> None:
    values = {**fields(), "tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2}
    assert ModelConfig.from_gguf(values, SHAPES).eos_token_ids == (2, 7)


def test_rope_scaling_is_read() -> None:
    assert read(rope__scaling__type="none").rope == RopeConfig(10_000.0)
    linear = read(rope__scaling__type="linear", rope__scaling__factor=4.0).rope
    assert linear == RopeConfig(10_000.0, "linear", factor=4.0)
    yarn = read(
        rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=64
    ).rope
    hf = ModelConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": 331,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        }
    )
    assert yarn == hf.rope


@pytest.mark.parametrize(
    ("architecture", "changes", "says"),
    [
        ("gemma", {}, "unknown architecture 'gemma'"),
        ("llama", {"block_count": None}, r"no 'llama\.block_count'"),
        ("llama", {"attention__head_count": [4, 2]}, "must be one number for all layers"),
        ("llama", {"block_count": 2.5}, "must be a whole number"),
        ("llama", {"attention__key_length": 16, "attention__value_length": 32}, "all three must be equal"),
        ("llama", {"rope__dimension_count": 8}, "all three must be equal"),
        ("llama", {"rope__scaling__type": "longrope", "rope__scaling__factor": 2.0}, "'longrope'"),
        ("llama", {"attention__head_count_kv": 3}, "must be a multiple"),
        ("llama", {"block_count": 1 << 60}, "at most 1000"),
    ],
)
def test_what_the_decoder_cannot_follow_is_refused(
    architecture: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read(architecture, **changes)


def test_divisors_must_fit() -> None:
    with pytest.raises(ConfigError, match="3 frequency divisors, expected head_dim / 2 = 8"):
        with_divisors(read(), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="positive"):
        with_divisors(read(), (0.0,) * 8)


VALUES = st.one_of(
    st.booleans(),
    st.integers(0, 1 << 64),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(0, 9) | st.text(max_size=3), max_size=4),
)
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1, 1, 3],
    "tokenizer.ggml.scores": [0.0, 0.0, 1.0],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "x",
}
ALL = {**fields(expert_count=4, expert_used_count=2), **VOCABULARY, "split.count": 1}


@given(key=st.sampled_from(sorted(ALL)), value=VALUES, kind=st.sampled_from(["gpt2", "llama"]))
def test_any_value_gives_a_model_or_a_model_error(key: str, value: Any, kind: str) -> None:
    values = {**ALL, "tokenizer.ggml.model": kind, key: value}
    for build in (
        lambda: ModelConfig.from_gguf(values, SHAPES),
        lambda: tokenizer_from_gguf(values).encode("ab"),
    ):
        with suppress(ModelError):
            build()
