"""Tokenizer of a Hugging Face directory, against transformers' AutoTokenizer; streams against whole decoding."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import TokenizerError
from interlace.models.tokenization.directory import tokenizer_from_directory
from interlace.models.tokenizer import Tokenizer
from support.tiny_models import write_tokenizer

TEXTS = [
    "",
    " ",
    "\n\n  \t",
    "The capital of France is Paris.",
    "  leading and trailing  ",
    "don't we'll I'M they'd",
    "1234567890 3.14 12  34",
    "def f(x):\n    return x ** 2  # squared\n",
    "naïve café Ünïcödé ſ",
    "日本語とEnglishの混在。",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈🎉 and \u200d joiners",
    "<|im_start|>user\nspecial tokens in text<|im_end|>",
    "half a special <|im_st",
    "\x00\x7f\u0085 control",
    "e\u0301 combining é",
]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": " c \n"},
    ],
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return tokenizer_from_directory(directory)


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_transformers(tokenizer: Tokenizer, oracle: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle(text)["input_ids"]
    assert tokenizer.encode(text, add_special=False) == oracle(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == oracle.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("generate", [True, False])
def test_chats_equal_transformers(tokenizer: Tokenizer, oracle: Any, chat: Any, generate: bool) -> None:
    expected = oracle.apply_chat_template(chat, add_generation_prompt=generate, tokenize=False)
    assert tokenizer.render_chat(chat, generate) == expected
    assert (
        tokenizer.apply_chat_template(chat, generate)
        == oracle(expected, add_special_tokens=False)["input_ids"]
    )


def test_special_tokens_are_known(tokenizer: Tokenizer, oracle: Any) -> None:
    assert tokenizer.eos_token_id == oracle.eos_token_id == 2
    assert tokenizer.bos_token_id == oracle.bos_token_id == 0
    assert tokenizer.vocab_size == len(oracle)


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        (None, (0,)),
        ("{{ m }}", (0,)),
        ("{{ m }}<|im_end|>", (0, 2)),
        ("<|im_start|>{{ m }}<|endoftext|>", (0,)),
        ("{{ m }}<|eot_id|></s>", (0,)),
    ],
)
def test_ends_are_eos_and_the_turn_s_end_in_the_template(
    tmp_path: Path, directory: Path, template: str | None, ids: tuple[int, ...]
) -> None:
    changes = {"eos_token": "<|endoftext|>", "chat_template": template}
    assert tokenizer_from_directory(with_settings(directory, tmp_path, **changes)).end_token_ids == ids


def test_a_tokenizer_without_eos_names_no_end(tmp_path: Path, directory: Path) -> None:
    assert tokenizer_from_directory(with_settings(directory, tmp_path, eos_token=None)).end_token_ids == ()


def test_special_tokens_are_found_by_their_whole_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_token_id("<|im_end|>") == 2
    for text in ("<|im_end|>\n", " <|im_end|>", "the", "", "<|im_end|><|im_end|>"):
        assert tokenizer.special_token_id(text) is None


@given(text=st.text(max_size=60))
def test_a_stream_joins_to_the_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@given(seed=st.integers(0, 1 << 30))
def test_a_stream_of_random_tokens_joins_to_the_whole(tokenizer: Tokenizer, seed: int) -> None:
    ids = random.Random(seed).choices(range(tokenizer.vocab_size), k=60)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_an_unfinished_character_is_held_until_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🎉")
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == [""] * (len(ids) - 1) + ["🎉"]
    assert stream.push(ids[0]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def with_settings(directory: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(directory, target, dirs_exist_ok=True)
    (target / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None, **changes}))
    return target


def test_special_tokens_may_be_objects(tmp_path: Path, directory: Path) -> None:
    changes = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "bos_token": None}
    tokenizer = tokenizer_from_directory(with_settings(directory, tmp_path, **changes))
    assert tokenizer.eos_token_id == 2
    assert tokenizer.bos_token_id is None


def test_the_default_of_several_templates_is_taken(tmp_path: Path, directory: Path) -> None:
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain {{ bos_token }}"},
    ]
    tokenizer = tokenizer_from_directory(with_settings(directory, tmp_path, chat_template=named))
    assert tokenizer.render_chat(CHATS[0]) == "plain <|endoftext|>"


def test_the_template_file_wins(tmp_path: Path, directory: Path) -> None:
    with_settings(directory, tmp_path, chat_template="old")
    (tmp_path / "chat_template.jinja").write_text("new", encoding="utf-8")
    assert tokenizer_from_directory(tmp_path).render_chat(CHATS[0]) == "new"


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "What is the capital of France?"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "What is the capital of France?"}'),
        ("{% for m in messages %}{% break %}{% endfor %}{{ strftime_now('%Y') | length }}", "4"),
        ("{{ tools is none }}{{ flavour }}", "Truesweet"),
    ],
)
def test_templates_have_what_they_are_written_for(template: str, rendered: str) -> None:
    import tokenizers

    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), {}, template)
    assert tokenizer.render_chat(CHATS[0], flavour="sweet") == rendered


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        ("{% if %}", "not valid Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_templates_that_fail_say_why(template: str | None, says: str) -> None:
    import tokenizers

    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), {}, template)
    with pytest.raises(TokenizerError, match=says):
        tokenizer.apply_chat_template(CHATS[0])


@pytest.mark.parametrize(
    "messages", [[], "hello", {"role": "user"}, ["hello"], [{"content": "x"}], [{"role": 1}]]
)
def test_messages_that_are_none_are_refused(tokenizer: Tokenizer, messages: Any) -> None:
    with pytest.raises(TokenizerError, match="message"):
        tokenizer.apply_chat_template(messages)


@pytest.mark.parametrize("text", [None, 3, b"bytes", "lone \ud800 surrogate"])
def test_what_is_no_text_cannot_be_encoded(tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(TokenizerError, match="cannot encode"):
        tokenizer.encode(text)


def test_missing_or_damaged_tokenizer_is_named(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        tokenizer_from_directory(tmp_path)
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not JSON"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is damaged"):
        tokenizer_from_directory(tmp_path)
