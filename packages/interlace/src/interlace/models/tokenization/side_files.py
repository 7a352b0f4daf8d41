"""Reads the files beside tokenizer.json that are about its tokens: tokenizer_config.json and two older ones.

transformers reads them in the same order. Of the other settings there none changes a token: with a tokenizer.json,
transformers too leaves out `add_bos_token`, `add_eos_token`, `add_prefix_space` and `legacy`, which tokenizer.json has
in its own way, and lengths and sides of padding and truncation, which nobody asks for here. It cleans up no spaces of
byte-level text (`clean_up_tokenization_spaces`), which would change what the model wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from interlace.errors import ConfigError, TokenizerError
from interlace.models.json_file import read_optional_json

_log = logging.getLogger(__name__)

_CONFIG, _ADDED, _SPECIAL_MAP = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def read_settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed from special_tokens_map.json.

    Where the former has no `added_tokens_decoder` it is of an older format, and the latter wins.
    """
    settings = _read(directory / _CONFIG)
    older = _read(directory / _SPECIAL_MAP)
    return {**older, **settings} if "added_tokens_decoder" in settings else {**settings, **older}


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that have a name ("eos_token"), by it."""
    extra = settings.get("extra_special_tokens")
    named = {**settings, **extra} if isinstance(extra, Mapping) else settings
    contents = {name: _content(value) for name, value in named.items() if name.endswith("_token")}
    return {name: token for name, token in contents.items() if token is not None}


def complete(backend: tokenizers.Tokenizer, directory: Path, settings: Mapping[str, Any]) -> None:
    """Gives `backend` the tokens, and what is special of them, that only the files beside tokenizer.json have.

    Raises:
        TokenizerError: a file is damaged, or gives a token an id that it cannot have.
    """
    backend.encode_special_tokens = settings.get("split_special_tokens") is True
    try:
        _add_declared(backend, directory, settings)
        _mark_special(backend, settings)
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{directory / _CONFIG} or a file beside it names a token that is no text ({error}); fetch it again"
        ) from error


def _add_declared(backend: tokenizers.Tokenizer, directory: Path, settings: Mapping[str, Any]) -> None:
    """Tokens with an id of their own, which must be the next ones after those of tokenizer.json."""
    source, declared = _declared(directory, settings)
    there = backend.get_added_tokens_decoder()
    missing: dict[int, AddedToken] = {}
    for token_id, token in sorted(declared.items(), key=lambda entry: entry[0]):
        known = backend.token_to_id(token.content)
        if known is not None and known != token_id:
            _log.warning(
                "%s has %r as token %d, tokenizer.json as %d, which holds",
                source,
                token.content,
                token_id,
                known,
            )
        elif repr(token) != repr(there.get(token_id)):
            missing[token_id] = token
    backend.add_tokens(list(missing.values()))  # at once: each call takes as long as there are tokens
    for token_id, token in missing.items():
        found = backend.token_to_id(token.content)
        if found != token_id:
            raise TokenizerError(
                f"{directory / source} has {token.content!r} as token {token_id}, but the next one after those of "
                f"tokenizer.json is {found}: one of the files is of another model; fetch them again"
            )


def _declared(directory: Path, settings: Mapping[str, Any]) -> tuple[str, dict[int, AddedToken]]:
    entries = settings.get("added_tokens_decoder")
    try:
        if entries is not None:
            return _CONFIG, {int(token_id): _added_token(entry) for token_id, entry in entries.items()}
        special = {*special_tokens(settings).values(), *_unnamed(settings)}
        return _ADDED, {
            _id(token_id): AddedToken(token, special=token in special, normalized=token not in special)
            for token, token_id in _read(directory / _ADDED).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        source = _ADDED if entries is None else f"{_CONFIG}: 'added_tokens_decoder'"
        raise TokenizerError(
            f"{directory / source} must have tokens with their ids: {error}; fetch the file again"
        ) from error


def _mark_special(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """Tokens that are special by their role are matched whole in a text, and left out of what is shown."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    marked, missing = [], []
    for token in dict.fromkeys([*special_tokens(settings).values(), *_unnamed(settings)]):
        if backend.token_to_id(token) is None:
            missing.append(repr(token))
        elif token not in added:
            marked.append(AddedToken(token, special=True, normalized=False))
        elif not added[token].special:
            added[token].special = True
            marked.append(added[token])
    backend.add_special_tokens(marked)
    if missing:
        _log.warning(
            "tokenizer_config.json names tokens that no file gives an id: %s; they are left out",
            ", ".join(missing),
        )


def _unnamed(settings: Mapping[str, Any]) -> Iterator[str]:
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = settings.get(key)
        contents = [_content(value) for value in values] if isinstance(values, list) else []
        yield from (content for content in contents if content is not None)


def _content(value: Any) -> str | None:
    """A token is a string, or an object with the string in `content`."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) and content else None


def _added_token(entry: Mapping[str, Any]) -> AddedToken:
    content = _content(entry)
    if content is None:
        raise ValueError(f"got {entry!r}")
    return AddedToken(content, **{flag: entry[flag] for flag in _FLAGS if flag in entry})


def _id(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"got {value!r} for an id")
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_optional_json(path) or {}
    except ConfigError as error:
        raise TokenizerError(str(error)) from error
