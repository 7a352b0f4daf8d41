"""How GGUF files' byte-level vocabularies cut text into words, against token ids that llama.cpp gave for 200 texts."""

from __future__ import annotations

import json
import logging
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from interlace.errors import TokenizerError
from interlace.models.gguf.tokenizer import tokenizer_from_gguf
from interlace.models.tokenization.pre_tokenizers import PRE_TOKENIZERS
from support.dense_vocabulary import dense_fields, digest

CASES = json.loads((Path(__file__).parents[4] / "tests" / "support" / "pre_tokenizer_cases.json").read_text())
TEXTS: list[str] = CASES["texts"]
NAMES = {name: rule for rule in CASES["rules"] for name in rule["names"].split()}

# Where the model's own tokenizer is followed, and not llama.cpp's simpler form of it.
COMPOSED = ("qwen2", "deepseek-r1-qwen")
CASED = ("tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")


@cache
def vocabulary() -> dict[str, Any]:
    return dense_fields(TEXTS, "default")


def fields(pre: str | None, **changes: Any) -> dict[str, Any]:
    values = {**vocabulary(), "tokenizer.ggml.pre": pre}
    values.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    return {key: value for key, value in values.items() if value is not None}


def is_cut_by_the_models_own_rule(name: str, text: str) -> bool:
    """Composed first, or with letters whose case or marks llama.cpp leaves out."""
    if name in COMPOSED:
        return not unicodedata.is_normalized("NFC", text)
    return name in CASED and any(
        ord(char) > 127 and unicodedata.category(char) in ("Lu", "Ll", "Lt", "Mn", "Mc", "Me")
        for char in text
    )


def test_every_rule_was_compared() -> None:
    assert set(NAMES) == set(PRE_TOKENIZERS)
    assert len(TEXTS) == len(set(TEXTS)) == 200


# The rules of one group gave the same ids there: one of each is run, and a name of another group would differ.
@pytest.mark.parametrize("rule", CASES["rules"], ids=lambda rule: rule["names"].partition(" ")[0])
def test_ids_equal_those_of_llama_cpp(rule: dict[str, Any]) -> None:
    names = rule["names"].split()
    by_words = {PRE_TOKENIZERS[name]: name for name in names}
    expected = [rule["digests"][at : at + 4] for at in range(0, 4 * len(TEXTS), 4)]
    for name in by_words.values():
        tokenizer = tokenizer_from_gguf(fields(name))
        ids = [tokenizer.encode(text, add_special=False) for text in TEXTS]
        differ = [t for t, i, e in zip(TEXTS, ids, expected, strict=True) if digest(i) != e]
        assert not [text for text in differ if not is_cut_by_the_models_own_rule(name, text)]
        assert len(differ) <= (14 if name in COMPOSED + CASED else 0)
        bos = [0] if rule["adds_bos"] else []
        assert [tokenizer.encode(text) for text in TEXTS] == [bos + row for row in ids]


def test_the_documentation_lists_every_name() -> None:
    page = (Path(__file__).parents[4] / "docs" / "models.md").read_text()
    section = page.partition("## Tokenizers out of GGUF files")[2].partition("\n## ")[0]
    listed = section.split("200 texts:")[1].strip().partition("\n\n")[0].rstrip(".")
    assert {name.strip().strip("`") for name in listed.replace("\n", " ").split(",")} == set(PRE_TOKENIZERS)


def test_a_qwen2_text_is_composed_first() -> None:
    tokenizer = tokenizer_from_gguf(fields("qwen2"))
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("café")


@pytest.mark.parametrize("pre", [None, ""])
def test_a_file_without_the_name_gets_the_default_and_a_warning(
    pre: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    ours, default = tokenizer_from_gguf(fields(pre)), tokenizer_from_gguf(fields("default"))
    assert [ours.encode(text) for text in TEXTS] == [default.encode(text) for text in TEXTS]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "tokenizer.ggml.pre" in record.getMessage()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"'kimi-k2' is not one of the 68 known ones.*directory"):
        tokenizer_from_gguf(fields("kimi-k2"))


@pytest.mark.parametrize("name", ["default", "deepseek-llm", "tekken"])
def test_long_runs_of_one_character_are_no_trap(name: str) -> None:
    """A rule that looks ahead to the end of the run from each place in it would take minutes."""
    tokenizer = tokenizer_from_gguf(fields(name))
    for char in ("7", " ", "\n", "é", "!", "\u0301"):
        assert tokenizer.decode(tokenizer.encode(char * 4_000, add_special=False)) == char * 4_000
