"""Reads the tokenizer of a Hugging Face directory: tokenizer.json and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from interlace.errors import TokenizerError
from interlace.models.tokenization import side_files
from interlace.models.tokenizer import Tokenizer


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
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"{path} is damaged or of an unknown kind: {error}") from error
    settings = side_files.read_settings(directory)
    side_files.complete(backend, directory, settings)
    return Tokenizer(backend, side_files.special_tokens(settings), _chat_template(directory, settings))


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
