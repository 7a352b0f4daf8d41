"""Streams against whole decoding: after any prompt, for any tokens, with work that grows as the tokens do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from interlace.models.gguf.tokenizer import tokenizer_from_gguf
from interlace.models.token_stream import TokenStream
from interlace.models.tokenization.directory import tokenizer_from_directory
from interlace.models.tokenizer import Tokenizer
from support import sentence_piece
from support.tiny_models import write_tokenizer

PARTS = [*"ab .\n▁é漢🎉\u200d\ufffd", "the", " the", "  "]
TEXT = st.lists(st.sampled_from(PARTS), max_size=20).map("".join)


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return tokenizer_from_gguf(sentence_piece.fields())


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return tokenizer_from_directory(directory)


@pytest.fixture(scope="module", params=["pieces", "byte_level"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@cache
def metaspace(scheme: str) -> Tokenizer:
    """As converters to tokenizer.json write SentencePiece vocabularies, one way or another."""
    tokenizer = tokenizer_from_gguf(sentence_piece.fields())
    backend = tokenizer.backend
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    return tokenizer


def join(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = (), skip: bool = True) -> str:
    stream = tokenizer.stream(skip, prompt)
    return "".join(map(stream.push, ids)) + stream.flush()


def test_the_first_word_after_a_prompt_keeps_its_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The capital of France is Paris", add_special=False)
    for cut in range(1, len(ids)):
        shown = tokenizer.decode(ids[:cut])
        assert shown + join(tokenizer, ids[cut:], ids[:cut]) == "The capital of France is Paris"


def test_the_first_word_of_all_has_none(pieces: Tokenizer) -> None:
    ids = pieces.encode("the river", add_special=False)
    assert join(pieces, ids) == join(pieces, ids, [sentence_piece.BOS]) == "the river"


def test_special_tokens_at_a_prompt_s_end_are_looked_past(pieces: Tokenizer) -> None:
    prompt = [*pieces.encode("Hello"), *[sentence_piece.EOS] * 20]
    assert join(pieces, pieces.encode("the", add_special=False), prompt) == " the"
    assert join(pieces, pieces.encode("the", add_special=False), prompt, skip=False) == " the"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@given(prompt=TEXT, text=TEXT)
@example(prompt="\u6f22\ufffd\ufffd", text="\n")  # in bytes
@example(prompt="\ufffd" * 5, text="a\n")
def test_metaspace_tokenizers_join_too(scheme: str, prompt: str, text: str) -> None:
    tokenizer = metaspace(scheme)
    before = tokenizer.encode(prompt)
    ids = tokenizer.encode(text, add_special=False)
    for skip in (True, False):
        shown, whole = tokenizer.decode(before, skip), tokenizer.decode([*before, *ids], skip)
        assert shown + join(tokenizer, ids, before, skip) == whole


@given(prompt=TEXT, text=TEXT)
def test_prompt_and_stream_join_to_the_whole(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    before = tokenizer.encode(prompt)
    ids = tokenizer.encode(text, add_special=False)
    whole = tokenizer.decode([*before, *ids])
    assert tokenizer.decode(before) + join(tokenizer, ids, before) == whole


@given(seed=st.integers(0, 1 << 30), cut=st.integers(0, 60))
def test_random_tokens_after_random_prompts_join_to_the_whole(
    byte_level: Tokenizer, seed: int, cut: int
) -> None:
    ids = random.Random(seed).choices(range(byte_level.vocab_size), k=60)
    while byte_level.decode(ids[:cut]).endswith("\ufffd"):  # inside a character: see the next test
        cut -= 1
    assert byte_level.decode(ids[:cut]) + join(byte_level, ids[cut:], ids[:cut]) == byte_level.decode(ids)


def test_a_character_that_a_prompt_begins_is_completed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🎉", add_special=False)
    for cut in (1, 2, 3):
        assert join(tokenizer, ids[-cut:], ids[:-cut]) == "🎉"
        assert join(tokenizer, tokenizer.encode(".", add_special=False)[-1:], ids[:-cut]) == "."


def test_a_character_comes_out_whole_after_any_number_of_broken_ones(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("🎉", add_special=False)
    stream = byte_level.stream()
    out = [stream.push(token) for token in [*ids[:1] * 50, *ids]]
    assert "".join(out) == "\ufffd" * 50 + "🎉"
    assert out[-1].endswith("🎉")


class Counting:
    """A tokenizer that counts the tokens it is asked to decode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.is_spelled = tokenizer.is_spelled
        self.num_decoded = 0

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        self.num_decoded += len(ids)
        return self._tokenizer.decode(ids, skip_special)


def row(tokenizer: Tokenizer, kind: str) -> list[int]:
    """Tokens to be repeated."""
    party = tokenizer.encode("🎉", add_special=False)[-4:]
    return {
        "special": [1],
        "outside": [tokenizer.vocab_size + 5],
        "beginning": party[:1],
        "rest": party[3:],
        "three of four": party[:3],
        "beginning and special": [party[0], 1],
        "words": tokenizer.encode("the river"),
    }[kind]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    "kind", ["special", "outside", "beginning", "rest", "three of four", "beginning and special", "words"]
)
def test_work_grows_as_the_tokens_do(tokenizer: Tokenizer, kind: str, skip: bool) -> None:
    counting = Counting(tokenizer)
    stream = TokenStream(counting, skip, tokenizer.encode("the"))
    repeated = row(tokenizer, kind)
    for _ in range(400 // len(repeated)):
        for token in repeated:
            stream.push(token)
    assert counting.num_decoded <= 60 * 400


def test_work_is_bounded_for_tokens_that_show_nothing(pieces: Tokenizer) -> None:
    """The empty string is a token of some vocabularies."""

    class Silent(Counting):
        def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
            self.num_decoded += len(ids)
            return ""

    silent = Silent(pieces)
    stream = TokenStream(silent, True)
    assert {stream.push(7) for _ in range(400)} == {""}
    assert silent.num_decoded <= 60 * 400
