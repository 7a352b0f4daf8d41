"""The embedded model, SmolLM2-135M-Instruct, read as transformers reads the same file."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from interlace.errors import ModelNotFound
from interlace.models.sources import LoadedModel, load_model

TEXTS = [
    "The capital of France is Paris.",
    "don't WE'LL I'm  they'd've",
    "1234567890 3.14 a1b22c333 2024-01-31",
    "   leading\n\n\ttabs and   runs \r\n",
    "naïve café Ünïcödé ſ e\u0301 ﬁ",
    "日本語とEnglishの混在。한국어 العربية עברית",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈🎉",
    "def f(x):\n    return {k: v ** 2 for k, v in x.items()}  # ok\n",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|> <repo_name>",
    "\x00\x7f\u0085\u200b",
]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    try:
        return load_model("smollm2", quiet=True)
    except ModelNotFound as error:
        pytest.skip(f"smollm2 cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def oracle(model: LoadedModel) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.path.parent, gguf_file=model.path.name)


def test_configuration_is_the_published_one(model: LoadedModel) -> None:
    config = model.config
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_position, config.rope.theta) == (49152, 8192, 100_000.0)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2, 0, 4)  # its own, and the ends that its vocabulary is known by
    assert not model.weights.has("lm_head")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_transformers(model: LoadedModel, oracle: Any, text: str) -> None:
    ids = model.tokenizer.encode(text)
    assert ids == oracle(text)["input_ids"]
    assert model.tokenizer.decode(ids, skip_special=False) == text
    assert model.tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_a_stream_joins_to_the_whole(model: LoadedModel) -> None:
    for text in TEXTS:
        ids = model.tokenizer.encode(text)
        stream = model.tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == model.tokenizer.decode(ids)
    ids = random.Random(0).choices(range(49152), k=400)
    stream = model.tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == model.tokenizer.decode(ids)


def test_chats_equal_transformers(model: LoadedModel, oracle: Any) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    for messages in (chat, [{"role": "system", "content": "Be brief."}, *chat]):
        expected = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert model.tokenizer.render_chat(messages) == expected
        ids = oracle(expected, add_special_tokens=False)["input_ids"]
        assert model.tokenizer.apply_chat_template(messages) == ids


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_every_weight_equals_transformers(model: LoadedModel) -> None:
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(
        model.path.parent, gguf_file=model.path.name, dtype=torch.float32
    )
    state = oracle.state_dict()
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    names |= {part: f"self_attn.{part}_proj" for part in "qkvo"}
    names |= {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    for layer in range(model.config.num_layers):
        for ours, theirs in names.items():
            expected = state[f"model.layers.{layer}.{theirs}.weight"]
            torch.testing.assert_close(model.weights.load(f"layers.{layer}.{ours}"), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        model.weights.load("embed"), state["model.embed_tokens.weight"], rtol=0, atol=0
    )
    torch.testing.assert_close(model.weights.load("norm"), state["model.norm.weight"], rtol=0, atol=0)
