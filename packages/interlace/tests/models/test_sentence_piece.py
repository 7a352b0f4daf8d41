"""SentencePiece vocabularies of GGUF files, against ids that sentencepiece gave for the same vocabulary."""

from __future__ import annotations

import pytest

from interlace.models.gguf.tokenizer import tokenizer_from_gguf
from interlace.models.tokenizer import Tokenizer
from support.sentence_piece import BOS, CASES, EOS, fields


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_from_gguf(fields())


def bare(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False)


def test_ids_equal_sentencepiece(tokenizer: Tokenizer) -> None:
    assert len(CASES) > 100
    for text, ids in CASES:
        assert bare(tokenizer, text) == ids, text
        assert tokenizer.encode(text) == [BOS, *ids], text


def test_texts_come_back_with_the_spaces_they_had(tokenizer: Tokenizer) -> None:
    for text, ids in CASES:
        assert tokenizer.decode(ids) == text.replace("▁", " "), text


def test_a_leading_space_is_not_the_one_that_every_text_gets(tokenizer: Tokenizer) -> None:
    assert bare(tokenizer, " Hello") != bare(tokenizer, "Hello")
    assert bare(tokenizer, "  Hello") != bare(tokenizer, " Hello")


def test_a_space_goes_before_what_follows_a_special_token(tokenizer: Tokenizer) -> None:
    hello, bye = bare(tokenizer, "Hello"), bare(tokenizer, "[INST] bye")
    assert bare(tokenizer, "<s>Hello</s>[INST] bye") == [BOS, *hello, EOS, *bye]
    assert bare(tokenizer, "<s></s>Hello") == [BOS, EOS, *hello]
    assert bare(tokenizer, "Hello</s>") == [*hello, EOS]


@pytest.mark.parametrize("kind", [3, 4])
def test_a_space_goes_before_what_follows_an_added_token(kind: int) -> None:
    tokenizer = tokenizer_from_gguf(fields(("<|im_end|>",), kind))
    hello, added = bare(tokenizer, "Hello"), tokenizer.vocab_size - 1
    assert bare(tokenizer, "Hello<|im_end|>Hello") == [*hello, added, *hello]
    assert bare(tokenizer, "Hello<|im_end|> Hello") == [*hello, added, *bare(tokenizer, " Hello")]


def test_a_file_may_ask_for_no_such_space() -> None:
    tokenizer = tokenizer_from_gguf(fields(add_space_prefix=False))
    assert bare(tokenizer, " Hello") == bare(tokenizer_from_gguf(fields()), "Hello")
    assert bare(tokenizer, "<s> Hello")[1:] == bare(tokenizer, " Hello")
    for text, _ in CASES:
        assert tokenizer.decode(bare(tokenizer, text)) == text.replace("▁", " "), text


def test_a_file_that_names_no_special_tokens_has_those_of_llama(tokenizer: Tokenizer) -> None:
    unnamed = tokenizer_from_gguf(fields(bos_token_id=None, eos_token_id=None, unknown_token_id=None))
    assert unnamed.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert unnamed.encode("Hello") == tokenizer.encode("Hello")


@pytest.mark.parametrize("none", [-1, 2**32 - 1])
def test_minus_one_names_no_token(none: int) -> None:
    tokenizer = tokenizer_from_gguf(fields(bos_token_id=none, eos_token_id=none, unknown_token_id=none))
    assert tokenizer.special_tokens == {}
    assert tokenizer.encode("Hello") == bare(tokenizer, "Hello")
