"""Tokenizers built from GGUF metadata, against transformers' own tokenizers of the same vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from interlace.errors import TokenizerError
from interlace.models.gguf.tokenizer import tokenizer_from_gguf
from interlace.models.sources import load_model
from interlace.models.tokenization.directory import tokenizer_from_directory
from support.tiny_models import make_gguf, write_tokenizer

TEXTS = [
    "",
    "The capital of France is Paris.",
    "don't WE'LL I'm",
    "1234567 3.14 a1b22 12  34",
    "   spaces   between \n\n\n lines\t\r\n",
    "naïve café 日本語 👩‍👩‍👧",
    "def f(x):\n    return x ** 2",
    "CamelCase HTTPServer/path/to.file",
    "<|im_start|>user\nhi<|im_end|>",
    "e\u0301",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_fields(directory: Path, pre: str) -> dict[str, Any]:
    write_tokenizer(directory)
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def oracle_backend(directory: Path, pre: str) -> Backend:
    """The directory's tokenizer with the pre-tokenizer of the model family that `pre` stands for."""
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    if pre in ("llama-bpe", "qwen2"):
        pattern = LLAMA3 if pre == "llama-bpe" else LLAMA3.replace("{1,3}", "")
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_vocabularies_cut_words_as_their_family_does(tmp_path: Path, pre: str) -> None:
    ours = tokenizer_from_gguf(byte_level_fields(tmp_path, pre))
    oracle = oracle_backend(tmp_path, pre)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == oracle.encode(text).ids, text
        assert ours.decode(ids) == oracle.decode(ids)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o"])
def test_word_rules_equal_transformers(pre: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    from interlace.models.tokenization.pre_tokenizers import PRE_TOKENIZERS

    assert PRE_TOKENIZERS[pre].splits == (GGUF_PRE_TOKENIZER_SPLITS[pre],)


def test_a_gguf_file_gives_the_tokenizer_of_its_directory(tmp_path: Path) -> None:
    make_gguf(tmp_path / "model.gguf")
    write_tokenizer(tmp_path)
    from_file = load_model(str(tmp_path / "model.gguf")).tokenizer
    from_directory = tokenizer_from_directory(tmp_path)
    chat = [{"role": "user", "content": "hi"}]
    assert from_file.apply_chat_template(chat) == from_directory.apply_chat_template(chat)
    assert from_file.eos_token_id == from_directory.eos_token_id
    for text in TEXTS:
        assert from_file.encode(text) == from_directory.encode(text)


@pytest.mark.parametrize(
    ("flags", "ids"), [({}, [3]), ({"bos": True}, [0, 3]), ({"bos": True, "eos": True}, [0, 3, 2])]
)
def test_the_file_says_what_goes_around_a_text(
    tmp_path: Path, flags: dict[str, bool], ids: list[int]
) -> None:
    fields = byte_level_fields(tmp_path, "gpt-2")
    fields |= {f"tokenizer.ggml.add_{name}_token": value for name, value in flags.items()}
    tokenizer = tokenizer_from_gguf(fields)
    assert tokenizer.encode(fields["tokenizer.ggml.tokens"][3]) == ids
    assert tokenizer.encode(fields["tokenizer.ggml.tokens"][3], add_special=False) == [3]


def test_user_defined_tokens_stay_whole_and_are_shown(tmp_path: Path) -> None:
    fields = byte_level_fields(tmp_path, "gpt-2")
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "<think>"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 4]
    tokenizer = tokenizer_from_gguf(fields)
    ids = tokenizer.encode("<think>", add_special=False)
    assert ids == [len(fields["tokenizer.ggml.tokens"]) - 1]
    assert tokenizer.decode(ids) == "<think>"


def test_control_tokens_typed_as_text_stay_whole_and_are_not_shown(tmp_path: Path) -> None:
    fields = byte_level_fields(tmp_path, "gpt-2")
    names = ["<|eot_id|>", "<|fim_prefix|>", "<|not_known|>"]
    first = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], *names]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 1, 1, 1]
    tokenizer = tokenizer_from_gguf(fields)
    assert tokenizer.encode("<|eot_id|><|fim_prefix|>") == [first, first + 1]
    assert first + 2 not in tokenizer.encode("<|not_known|>")
    assert tokenizer.decode([first, first + 1]) == ""


def test_an_unknown_token_is_matched_and_not_shown(tmp_path: Path) -> None:
    fields = byte_level_fields(tmp_path, "gpt-2")
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "<unk>"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 2]
    tokenizer = tokenizer_from_gguf(fields)
    ids = tokenizer.encode("<unk>")
    assert ids == [len(fields["tokenizer.ggml.tokens"]) - 1]
    assert tokenizer.decode(ids) == ""


def test_tokens_without_text_keep_their_places(tmp_path: Path) -> None:
    fields = byte_level_fields(tmp_path, "gpt-2")
    count = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "", "", "<last>"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 1, 1, 3]
    assert tokenizer_from_gguf(fields).encode("<last>") == [count + 2]


def test_of_a_merge_that_is_there_twice_the_first_place_holds(tmp_path: Path) -> None:
    fields = byte_level_fields(tmp_path, "gpt-2")
    plain = tokenizer_from_gguf(fields)
    merges = fields["tokenizer.ggml.merges"]
    twice = tokenizer_from_gguf({**fields, "tokenizer.ggml.merges": [*merges, *merges[:20]]})
    assert [twice.encode(text) for text in TEXTS] == [plain.encode(text) for text in TEXTS]


def test_keys_without_effect_are_read_past_and_unknown_ones_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = {
        "tokenizer.ggml.mask_token_id": 3,
        "tokenizer.ggml.remove_extra_whitespaces": False,
        "tokenizer.ggml.precompiled_charsmap": [],
        "tokenizer.chat_template.tool_use": "",
        "tokenizer.huggingface.json": "{}",
    }
    tokenizer_from_gguf({**byte_level_fields(tmp_path, "gpt-2"), **quiet})
    assert not caplog.records
    tokenizer_from_gguf({**byte_level_fields(tmp_path, "gpt-2"), "tokenizer.ggml.new_rule": 1})
    assert "'tokenizer.ggml.new_rule' is not known" in caplog.text


SPM_PIECES = [
    "▁",
    "t",
    "h",
    "e",
    "c",
    "a",
    "s",
    "th",
    "the",
    "▁the",
    "▁c",
    "at",
    "▁cat",
    "▁s",
    "▁sat",
    "é",
    ".",
]


def sentence_piece_fields(**changes: Any) -> dict[str, Any]:
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *SPM_PIECES]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(SPM_PIECES))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(SPM_PIECES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **changes,
    }


def pieces(fields: dict[str, Any], ids: list[int]) -> list[str]:
    return [fields["tokenizer.ggml.tokens"][token] for token in ids]


def test_sentence_piece_merges_the_best_scored_first() -> None:
    fields = sentence_piece_fields()
    tokenizer = tokenizer_from_gguf(fields)
    assert pieces(fields, tokenizer.encode("the cat")) == ["<s>", "▁the", "▁cat"]
    assert pieces(fields, tokenizer.encode("thé", add_special=False)) == ["▁", "th", "é"]


def test_characters_outside_the_vocabulary_become_bytes_and_come_back() -> None:
    fields = sentence_piece_fields()
    tokenizer = tokenizer_from_gguf(fields)
    ids = tokenizer.encode("the 🎉")
    assert pieces(fields, ids)[-4:] == ["<0xF0>", "<0x9F>", "<0x8E>", "<0x89>"]
    assert tokenizer.decode(ids) == "the 🎉"
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == "the 🎉"


def test_a_stream_does_not_break_what_is_out_for_a_bad_byte_after_it() -> None:
    fields = sentence_piece_fields()
    tokenizer = tokenizer_from_gguf(fields)
    ids = tokenizer.encode("the 🎉", add_special=False)
    stream = tokenizer.stream()
    out = "".join(map(stream.push, [*ids, ids[-4], tokenizer.backend.token_to_id("a")])) + stream.flush()
    assert out == "the 🎉\ufffda"


@pytest.mark.parametrize("prefix", [True, False])
def test_the_space_before_the_text_is_as_the_file_says(prefix: bool) -> None:
    fields = sentence_piece_fields(**{"tokenizer.ggml.add_space_prefix": prefix})
    tokenizer = tokenizer_from_gguf(fields)
    ids = tokenizer.encode("the cat", add_special=False)
    assert pieces(fields, ids) == ["▁the" if prefix else "the", "▁cat"]
    assert tokenizer.decode(ids) == "the cat"


def test_sentence_piece_equals_transformers_conversion() -> None:
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    fields = sentence_piece_fields()
    vocab = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    scores = dict(zip(vocab, fields["tokenizer.ggml.scores"], strict=True))
    oracle = LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, scores))
    ours = tokenizer_from_gguf(fields)
    for text in [*TEXTS, "the cat sat. thecat\nsat  the", "é🎉é"]:
        if text.startswith(" "):
            continue  # transformers merges such a space with the one that every text gets; sentencepiece does not
        ids = ours.encode(text, add_special=False)
        assert ids == oracle(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer.ggml.model": "bert"}, "supported are 'gpt2'.*'llama'"),
        ({"tokenizer.ggml.pre": 7}, "pre-tokenizer 7 is not one of the 68 known ones"),
        ({"tokenizer.ggml.merges": None}, r"no 'tokenizer\.ggml\.merges'"),
        ({"tokenizer.ggml.merges": ["notatoken x"]}, "vocabulary is damaged"),
        ({"tokenizer.ggml.eos_token_id": 10_000}, "eos token id 10000 is outside"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "has 'a' twice, as tokens 0 and 2"),
        ({"tokenizer.ggml.token_type": [1]}, "1 values in 'tokenizer.ggml.token_type' for 331 tokens"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token' must be true or false, got 'yes'"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces' .True., which is not"),
        (
            {"tokenizer.ggml.precompiled_charsmap": [1, 2, 3]},
            "precompiled_charsmap' .3 values., which is not",
        ),
        ({"tokenizer.ggml.normalizer.lowercase": True}, r"normalizer\.lowercase' .True., which is not"),
        ({"tokenizer.ggml.add_sep_token": True}, "add_sep_token' .True., which is not"),
        ({"tokenizer.ggml.suppress_tokens": [5]}, "suppress_tokens' .1 values., which is not"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        tokenizer_from_gguf({**byte_level_fields(tmp_path, "gpt-2"), **changes})


def test_the_decoder_is_byte_level(tmp_path: Path) -> None:
    backend = tokenizer_from_gguf(byte_level_fields(tmp_path, "smollm")).backend
    assert isinstance(backend.decoder, decoders.ByteLevel)
    assert isinstance(backend.model, models.BPE)
