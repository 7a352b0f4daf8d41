"""ModelConfig from GGUF metadata."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import ConfigError, ModelError
from interlace.models.config import ModelConfig, RopeConfig
from interlace.models.gguf.config import read_gguf_config
from interlace.models.gguf.tokenizer import tokenizer_from_gguf
from interlace.models.hf.config import read_hf_config

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
    return read_gguf_config(fields(architecture, **changes), SHAPES)


def test_architectures_become_families() -> None:
    assert read().family == "llama"
    assert read(expert_count=4, expert_used_count=2).family == "mixtral"
    assert read("qwen3").qk_norm


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_count": 0}, "GGUF metadata: llama.block_count must be at least 1, got 0"),
        (
            {"attention__head_count_kv": 3},
            r"llama.attention.head_count \(4\) must be a multiple of .*head_count_kv",
        ),
        (
            {"expert_count": 2, "expert_used_count": 3},
            "llama.expert_used_count must be between 1 and llama.expert_count",
        ),
    ],
)
def test_a_value_that_no_model_has_is_told_by_its_key(changes: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(**changes)


@pytest.mark.parametrize(("architecture", "num_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_scores_of_the_largest_gemma_are_scaled_by_its_width(architecture: str, num_layers: int) -> None:
    smaller, largest = (read(architecture, block_count=count) for count in (num_layers - 1, num_layers))
    assert smaller.attention_scale == smaller.head_dim**-0.5
    assert largest.query_pre_attn_scalar == largest.hidden_size / largest.num_heads


def test_an_olmo_with_a_window_is_refused() -> None:
    assert read("olmo2").sliding_window is None
    with pytest.raises(ConfigError, match=r"'olmo2\.attention\.sliding_window' is 64"):
        read("olmo2", attention__sliding_window=64)


def test_an_output_tensor_unties_the_embedding() -> None:
    assert read().tie_word_embeddings
    assert not read_gguf_config(fields(), {**SHAPES, "output.weight": (331, 64)}).tie_word_embeddings


def test_the_embedding_has_the_last_word_on_the_vocabulary() -> None:
    assert read(vocab_size=300).vocab_size == 331


def ends(tokens: list[str] | None = None, **ids: Any) -> tuple[int, ...]:
    values = {f"tokenizer.ggml.{name}": value for name, value in {"eos_token_id": 2, **ids}.items()}
    if tokens is not None:
        values["tokenizer.ggml.tokens"] = tokens
    return read_gguf_config({**fields(), **values}, SHAPES).eos_token_ids


def test_every_end_that_the_file_names_counts() -> None:
    assert ends(eot_token_id=7, eom_token_id=2) == (2, 7)
    assert ends(fim_pad_token_id=3, fim_rep_token_id=4, fim_sep_token_id=5) == (2, 3, 4, 5)
    assert ends(eos_token_ids=[2, 9]) == (2, 9)
    assert ends(fim_pre_token_id=3, fim_suf_token_id=4, fim_mid_token_id=5, padding_token_id=6) == (2,)


@pytest.mark.parametrize("none", [-1, 2**32 - 1, None])
def test_minus_one_names_no_end(none: int | None) -> None:
    assert ends(eos_token_id=none, eot_token_id=7) == (7,)


@pytest.mark.parametrize("value", [True, "2", 2.5, -2, [[1]]])
def test_an_end_that_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"'tokenizer\.ggml\.eot_token_id' must be a token id"):
        ends(eot_token_id=value)


# Which of these tokens are ends is what llama.cpp says (llama-cpp-python 0.3.36).
@pytest.mark.parametrize(
    ("tokens", "are_ends"),
    [
        ("<|begin_of_text|> <|end_of_text|> <|eom_id|> <|eot_id|> <|python_tag|>", "01110"),
        ("<|endoftext|> <|im_start|> <|im_end|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|>", "101000"),
        ("<|fim_pad|> <|repo_name|> <|file_sep|> <|fim_suffix|>", "1110"),
        ("<fim_pad> <fim_prefix> <reponame>", "101"),
        ("<|start|> <|end|> <|return|> <|call|> <|endoftext|>", "00111"),
        ("<|user|> <|end|> <|endoftext|>", "011"),
        ("<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜fim▁hole｜> <｜User｜>", "0100"),
        ("▁<PRE> ▁<SUF> ▁<MID> ▁<EOT> <EOT> _<EOT> [EOT]", "0000111"),
        ("<eos> <end_of_turn> <start_of_turn> </s> [EOS] <end_of_utterance>", "110111"),
        ("<eos> <turn|> <|tool_response> </s>", "1110"),
        ("the <|im_end| |im_end|> <|IM_END|>", "0000"),
    ],
)
def test_known_ends_count_though_the_file_does_not_name_them(tokens: str, are_ends: str) -> None:
    expected = tuple(index for index, flag in enumerate(are_ends, start=1) if flag == "1")
    assert ends(["a", *tokens.split()], eos_token_id=None) == expected


def test_tokens_that_are_no_texts_are_no_ends() -> None:
    assert ends(["a", 3, ["</s>"], None, "</s>"], eos_token_id=None) == (4,)


def test_a_sentencepiece_file_that_names_no_end_has_that_of_llama() -> None:
    values = {"model": "llama", "tokens": ["<unk>", "<s>", "<end>"]}
    assert ends(**values, eos_token_id=None) == ()
    named = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    plain = {key: value for key, value in fields().items() if "eos" not in key}
    config = read_gguf_config({**plain, **named}, SHAPES)
    assert (config.eos_token_ids, config.bos_token_id) == ((2,), 1)
    short = read_gguf_config({**plain, **named, "tokenizer.ggml.tokens": ["<unk>", "<s>"]}, SHAPES)
    assert short.eos_token_ids == ()


def test_rope_scaling_is_read() -> None:
    assert read(rope__scaling__type="none").rope == RopeConfig(10_000.0)
    linear = read(rope__scaling__type="linear", rope__scaling__factor=4.0).rope
    assert linear == RopeConfig(10_000.0, "linear", factor=4.0)
    yarn = read(
        rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=64
    ).rope
    hf = read_hf_config(
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
        (
            "llama",
            {"rope__scaling__type": "dynamic", "rope__scaling__factor": 2.0},
            "'dynamic' is not supported",
        ),
        ("llama", {"rope__scaling__type": 3}, "must be a text, got 3"),
        ("llama", {"attention__head_count_kv": 3}, "must be a multiple"),
        ("llama", {"block_count": 1 << 60}, "at most 1000"),
    ],
)
def test_what_the_decoder_cannot_follow_is_refused(
    architecture: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read(architecture, **changes)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"factor": 4.0}, RopeConfig(10_000.0, "linear", factor=4.0)),
        ({"factor": 0.0}, RopeConfig(10_000.0)),
        ({"type": "none", "factor": 4.0}, RopeConfig(10_000.0)),
        ({"type": "none", "attn_factor": 1.3}, RopeConfig(10_000.0, attention_factor=1.3)),
        ({"type": "linear", "factor": 2.0, "attn_factor": 0.8},
         RopeConfig(10_000.0, "linear", factor=2.0, attention_factor=0.8)),
        ({"type": "yarn"}, RopeConfig(10_000.0)),
        ({"type": "longrope", "factor": 4.0}, RopeConfig(10_000.0, "linear", factor=4.0, original_max_position=256)),
    ],
)  # fmt: skip
def test_rope_scaling_means_what_it_means_to_llama_cpp(changes: dict[str, Any], rope: RopeConfig) -> None:
    """Logits of such files were compared with those of llama.cpp (llama-cpp-python 0.3.36)."""
    assert read(**{f"rope__scaling__{key}": value for key, value in changes.items()}).rope == rope


def test_the_old_name_of_the_factor_is_read_where_there_is_no_new_one() -> None:
    assert read(rope__scale_linear=4.0).rope == RopeConfig(10_000.0, "linear", factor=4.0)
    assert read(rope__scale_linear=4.0, rope__scaling__factor=2.0).rope.factor == 2.0


def test_the_context_is_the_stretched_one() -> None:
    assert read(rope__scaling__type="yarn", rope__scaling__factor=4.0).max_position == 1024
    stated = read(
        rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=64
    )
    assert stated.max_position == 256


def with_tensors(tensors: dict[str, tuple[float, ...]], **changes: Any) -> RopeConfig:
    shapes = {**SHAPES, **{f"{name}.weight": (len(values),) for name, values in tensors.items()}}
    return read_gguf_config(
        fields(**changes), shapes, lambda tensor: tensors[tensor.removesuffix(".weight")]
    ).rope


def test_divisors_come_on_top_of_any_scaling() -> None:
    eight = tuple(float(i + 1) for i in range(8))
    assert with_tensors({"rope_freqs": eight}) == RopeConfig(10_000.0, divisors=eight)
    linear = with_tensors({"rope_freqs": eight}, rope__scaling__factor=2.0)
    assert linear == RopeConfig(10_000.0, "linear", factor=2.0, divisors=eight)


def test_longrope_has_divisors_for_short_and_for_long_texts() -> None:
    short, long = (1.0,) * 8, (2.0,) * 8
    kind = {"rope__scaling__type": "longrope", "rope__scaling__original_context_length": 64}
    both = {"rope_factors_short": short, "rope_factors_long": long}
    expected = RopeConfig(
        10_000.0, "longrope", original_max_position=64, short_divisors=short, long_divisors=long
    )
    assert with_tensors(both, **kind) == expected
    with pytest.raises(ConfigError, match=r"'longrope' needs the tensor 'rope_factors_long\.weight'"):
        with_tensors({"rope_factors_short": short}, **kind)


def test_divisors_must_fit() -> None:
    with pytest.raises(ConfigError, match="3 divisors, expected one for each frequency: head_dim / 2 = 8"):
        with_tensors({"rope_freqs": (1.0, 1.0, 1.0)})
    for bad in (0.0, float("nan")):
        with pytest.raises(ConfigError, match="positive"):
            with_tensors({"rope_freqs": (bad,) * 8})


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
ALL = {
    **fields(expert_count=4, expert_used_count=2, rope__scaling__type="yarn", rope__scaling__factor=2.0),
    **VOCABULARY,
}


@given(key=st.sampled_from(sorted(ALL)), value=VALUES, kind=st.sampled_from(["gpt2", "llama"]))
def test_any_value_gives_a_model_or_a_model_error(key: str, value: Any, kind: str) -> None:
    values = {**ALL, "tokenizer.ggml.model": kind, key: value}
    for build in (
        lambda: read_gguf_config(values, SHAPES),
        lambda: tokenizer_from_gguf(values).encode("ab"),
    ):
        with suppress(ModelError):
            build()
