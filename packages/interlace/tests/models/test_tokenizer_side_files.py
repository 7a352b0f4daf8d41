"""The files beside tokenizer.json count as they do in transformers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from interlace.errors import TokenizerError
from interlace.models.tokenization.directory import tokenizer_from_directory
from support.tiny_models import VOCAB_SIZE, write_tokenizer

TEXTS = [
    "hi",
    " a",
    "hi <|im_end|> x<|new|>y <|newer|>",
    "<|endoftext|>z",
    "The capital of France is Paris, and the river.",
]
NAMED = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
NEW = VOCAB_SIZE  # the first id after those of tokenizer.json


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


def write(directory: Path, settings: dict[str, Any] | None, **files: Any) -> Path:
    """A directory with tokenizer.json, changed by `tokenizer`, and the side files given."""
    directory.mkdir(exist_ok=True)
    write_tokenizer(directory)
    (directory / "chat_template.jinja").unlink()
    (directory / "tokenizer_config.json").unlink()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    path = directory / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **files.pop("tokenizer", {})}))
    if settings is not None:
        files["tokenizer_config"] = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "truncation": (NAMED, {"tokenizer": {"truncation": TRUNCATION}}),
    "padding": (NAMED, {"tokenizer": {"padding": PADDING}}),
    "decoder": (
        {"eos_token": "<|new|>", "added_tokens_decoder": {str(NEW): token("<|new|>")}},
        {},
    ),
    "decoder_two": (
        {
            **NAMED,
            "added_tokens_decoder": {
                str(NEW + 1): token("<|newer|>", lstrip=True),
                str(NEW): token("<|new|>", special=False),
            },
        },
        {},
    ),
    "decoder_flags": ({**NAMED, "added_tokens_decoder": {"2": token("<|im_end|>", rstrip=True)}}, {}),
    "added": ({"eos_token": "<|new|>"}, {"added_tokens": {"<|newer|>": NEW + 1, "<|new|>": NEW}}),
    "added_beside_decoder": ({**NAMED, "added_tokens_decoder": {}}, {"added_tokens": {"<|new|>": NEW}}),
    "map": ({}, {"special_tokens_map": {**NAMED, "eos_token": token("<|im_end|>")}}),
    "map_alone": (None, {"special_tokens_map": NAMED}),
    "map_wins": (NAMED, {"special_tokens_map": {"eos_token": "<|im_start|>"}}),
    "decoder_wins": (
        {**NAMED, "added_tokens_decoder": {}},
        {"special_tokens_map": {"eos_token": "<|im_start|>"}},
    ),
    "special_by_name_alone": (NAMED, {"tokenizer": {"added_tokens": []}}),
    "special_by_list_alone": (
        {**NAMED, "additional_special_tokens": ["<|im_start|>"]},
        {"tokenizer": {"added_tokens": []}},
    ),
    "split": ({**NAMED, "split_special_tokens": True}, {}),
    "flags_of_no_effect": (
        {
            **NAMED,
            "add_bos_token": True,
            "add_eos_token": True,
            "add_prefix_space": True,
            "model_max_length": 8,
        },
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_transformers(tmp_path: Path, case: str) -> None:
    from transformers import AutoTokenizer

    settings, files = CASES[case]
    directory = write(tmp_path, settings, **dict(files))
    ours, oracle = tokenizer_from_directory(directory), AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == oracle(text)["input_ids"]
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert (ours.bos_token_id, ours.eos_token_id) == (oracle.bos_token_id, oracle.eos_token_id)


def test_a_whole_prompt_is_encoded_whatever_is_baked_in(tmp_path: Path) -> None:
    directory = write(tmp_path, NAMED, tokenizer={"truncation": TRUNCATION, "padding": PADDING})
    tokenizer = tokenizer_from_directory(directory)
    assert tokenizer.decode(tokenizer.encode(TEXTS[4])) == TEXTS[4]
    assert len(tokenizer.encode(TEXTS[4])) > 8
    assert len(tokenizer.encode("hi")) == 1


@cache
def tokenizer_json() -> dict[str, Any]:
    with TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        content: dict[str, Any] = json.loads((Path(directory) / "tokenizer.json").read_text())
    return content


def model_of(**changes: Any) -> dict[str, Any]:
    return {**tokenizer_json()["model"], **changes}


def test_one_text_gives_the_same_tokens_each_time(tmp_path: Path) -> None:
    plain = tokenizer_from_directory(write(tmp_path / "plain", NAMED)).encode(TEXTS[4])
    tokenizer = tokenizer_from_directory(
        write(tmp_path / "dropout", NAMED, tokenizer={"model": model_of(dropout=0.9)})
    )
    assert all(tokenizer.encode(TEXTS[4]) == plain for _ in range(20))


def added(*ids: int) -> dict[str, Any]:
    """The special tokens of the tiny tokenizer, and new ones with these ids."""
    known = tokenizer_json()["added_tokens"]
    return {"added_tokens": known + [{"id": index, **token(f"<{index}>")} for index in ids]}


def test_added_tokens_have_the_ids_that_the_file_gives_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_from_directory(write(tmp_path, NAMED, tokenizer=added(NEW, NEW + 1)))
    assert tokenizer.encode(f"<{NEW + 1}>") == [NEW + 1]
    assert not caplog.records


@pytest.mark.parametrize("ids", [(400,), (NEW + 1, NEW)])
def test_added_tokens_whose_ids_cannot_be_had_are_refused(tmp_path: Path, ids: tuple[int, ...]) -> None:
    with pytest.raises(TokenizerError, match=f"adds '<{ids[0]}>' as token {ids[0]}, but .* number {NEW}"):
        tokenizer_from_directory(write(tmp_path, NAMED, tokenizer=added(*ids)))


def test_an_added_token_that_the_vocabulary_has_keeps_that_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = [{"id": 9, **token("<|im_end|>")}]
    tokenizer = tokenizer_from_directory(write(tmp_path, NAMED, tokenizer={"added_tokens": tokens}))
    assert tokenizer.eos_token_id == 2
    assert "'<|im_end|>' as token 9 among the added ones, as 2 in its vocabulary" in caplog.text


def test_a_vocabulary_may_have_the_word_for_added_tokens(tmp_path: Path) -> None:
    vocab = {**model_of()["vocab"], "added_tokens": NEW}
    model = {"model": model_of(vocab=vocab, merges=[])}
    directory = write(tmp_path, NAMED, tokenizer={**model, "added_tokens": added(400)["added_tokens"]})
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"model": content.pop("model"), **content}))  # the vocabulary first
    with pytest.raises(TokenizerError, match=f"adds '<400>' as token 400, but .* number {NEW + 1}"):
        tokenizer_from_directory(directory)


def test_every_named_token_reaches_the_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    names = ("sep_token", "mask_token", "cls_token", "image_token")
    settings = {**NAMED, **dict.fromkeys(names, "<|im_start|>")}
    settings["chat_template"] = "".join(f"{{{{ {name} }}}}|" for name in (*names, "bos_token", "none_token"))
    directory = write(tmp_path, settings)
    chat = [{"role": "user", "content": "x"}]
    expected = AutoTokenizer.from_pretrained(directory).apply_chat_template(chat, tokenize=False)
    assert tokenizer_from_directory(directory).render_chat(chat, False) == expected


def test_names_missing_from_a_newer_config_come_from_the_map(tmp_path: Path) -> None:
    directory = write(tmp_path, {"added_tokens_decoder": {}}, special_tokens_map={"eos_token": "<|im_end|>"})
    assert tokenizer_from_directory(directory).eos_token_id == 2


def test_a_named_token_without_an_id_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_from_directory(write(tmp_path, {**NAMED, "pad_token": "[PAD]"}))
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert "no file gives an id: '[PAD]'" in caplog.text


def test_of_two_ids_that_of_tokenizer_json_holds_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**NAMED, "added_tokens_decoder": {"77": token("<|im_end|>")}}
    assert tokenizer_from_directory(write(tmp_path, settings)).eos_token_id == 2
    assert "has '<|im_end|>' as token 77, tokenizer.json as 2, which holds" in caplog.text


@pytest.mark.parametrize(
    ("settings", "files", "says"),
    [
        ({"added_tokens_decoder": {"400": token("<|new|>")}}, {}, "as token 400, but the next one .* is 331"),
        ({}, {"added_tokens": {"<|new|>": 400}}, "added_tokens.json has '<|new|>' as token 400"),
        ({}, {"added_tokens": {"<|new|>": "7"}}, "added_tokens.json must have tokens.*got '7' for an id"),
        ({"added_tokens_decoder": {"x": token("a")}}, {}, "added_tokens_decoder' must have tokens"),
        ({"added_tokens_decoder": ["x"]}, {}, "added_tokens_decoder' must have tokens"),
        ({"added_tokens_decoder": {"5": 7}}, {}, "added_tokens_decoder' must have tokens.*got 7"),
        ({"added_tokens_decoder": {"5": {"content": "a", "rstrip": "b"}}}, {}, "must have tokens"),
        ({"eos_token": "\ud800"}, {}, "names a token that is no text"),
        ({}, {"special_tokens_map": [1]}, "special_tokens_map.json holds a JSON list"),
    ],
)
def test_side_files_that_make_no_sense_are_refused(
    tmp_path: Path, settings: dict[str, Any], files: dict[str, Any], says: str
) -> None:
    with pytest.raises(TokenizerError, match=says.replace("|", r"\|")):
        tokenizer_from_directory(write(tmp_path, settings, **files))
