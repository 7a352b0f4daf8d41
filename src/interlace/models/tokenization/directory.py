"""Reads the tokenizer of a Hugging Face directory: tokenizer.json and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from interlace.errors import ConfigError, TokenizerError
from interlace.models.json_file import read_json
from interlace.models.tokenizer import Tokenizer

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: tokenizer.json, tokenizer_config.json, chat_template.jinja.

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
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"{path} is damaged or of an unknown kind: {error}") from error
    settings = _read_settings(directory / "tokenizer_config.json")
    return Tokenizer(backend, _special_tokens(settings), _chat_template(directory, settings))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except ConfigError as error:
        raise TokenizerError(str(error)) from error


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Each special token is a string, or an object with the string in `content`."""
    found = {}
    for name in _SPECIAL_NAMES:
        value = settings.get(name)
        token = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(token, str):
            found[name] = token
    return found


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja wins; tokenizer_config.json has one template, or several by name."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path} cannot be read: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None
