"""Reads the tokenizer of a Hugging Face directory: tokenizer.json and the files beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import BPE

from interlace.errors import TokenizerError
from interlace.models.tokenization import side_files
from interlace.models.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_ADDED_TOKENS = '"added_tokens"'


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: tokenizer.json, and what the files beside it add.

    Raises:
        TokenizerError: tokenizer.json is missing or damaged, or the other files are.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{directory} has no tokenizer.json; save the tokenizer there with "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        text = path.read_text(encoding="utf-8")
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"{path} is damaged or of an unknown kind: {error}") from error
    _check_added_tokens(path, text, backend)
    _forget_training(backend)
    settings = side_files.read_settings(directory)
    side_files.complete(backend, directory, settings)
    return Tokenizer(backend, side_files.special_tokens(settings), _chat_template(directory, settings))


def _check_added_tokens(path: Path, text: str, backend: tokenizers.Tokenizer) -> None:
    """The library numbers added tokens itself, and leaves out without a word what the file says of their ids."""
    for token in _added_tokens(text):
        content, declared = token["content"], token["id"]
        found = backend.token_to_id(content)
        if found == declared:
            continue
        if backend.model.token_to_id(content) is None:
            raise TokenizerError(
                f"{path} adds {content!r} as token {declared}, but its other tokens leave it number {found}; "
                "give the added tokens the numbers after the vocabulary's, in order"
            )
        _log.warning(
            "%s has %r as token %d among the added ones, as %d in its vocabulary, which holds",
            *(path, content, declared, found),
        )


def _added_tokens(text: str) -> list[dict[str, Any]]:
    """The list in the file's text, found without reading the vocabulary, which takes long.

    The same word may be a token of the vocabulary: a number follows it there.
    """
    at = text.find(_ADDED_TOKENS)
    while at >= 0:
        start = at + len(_ADDED_TOKENS)
        rest = text[start : start + 64].lstrip(" \t\r\n:")
        if rest.startswith("["):
            found, _ = json.JSONDecoder().raw_decode(text, text.index("[", start))
            return [token for token in found if isinstance(token, dict)]
        at = text.find(_ADDED_TOKENS, start)
    return []


def _forget_training(backend: tokenizers.Tokenizer) -> None:
    """A prompt is neither cut nor filled up, and one text gives the same tokens each time, whatever training left."""
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, BPE):
        backend.model.dropout = None


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The templates by name: tokenizer_config.json has one, or several; files beside it win."""
    template = settings.get("chat_template")
    entries = template if isinstance(template, list) else [{"name": "default", "template": template}]
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, Mapping)}
    for path in (directory / "additional_chat_templates").glob("*.jinja"):
        named[path.stem] = _read_template(path)
    path = directory / "chat_template.jinja"
    if path.is_file():
        named["default"] = _read_template(path)
    return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
