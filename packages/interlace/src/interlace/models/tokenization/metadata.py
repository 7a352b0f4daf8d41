"""Reads the vocabulary out of GGUF metadata, and checks that nothing that has a meaning is read past."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from interlace.errors import TokenizerError
from interlace.models.token_ids import as_token_ids

_log = logging.getLogger(__name__)

_ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")
_FIM_ROLES = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
_READ = {
    *("model", "pre", "tokens", "token_type", "scores", "merges"),
    *("add_bos_token", "add_eos_token", "add_space_prefix", "eos_token_ids"),
    *(f"{role}_token_id" for role in _ROLES + _FIM_ROLES),
}
# The roles of tokens in encoders, and older names for those of fill-in-the-middle: generating text has no use for them.
_IGNORED_ROLES = ("seperator", "separator", "cls", "mask", "prefix", "suffix", "middle")
_IGNORED = {"token_type_count", *(f"{role}_token_id" for role in _IGNORED_ROLES)}
# Other chat templates, and copies of the tokenizer in other formats.
_IGNORED_ELSEWHERE = ("tokenizer.chat_template", "tokenizer.huggingface.json", "tokenizer.rwkv.")
# These change a text, or what may follow it. What leaves both as they are is supported.
_REFUSED_UNLESS_EMPTY = {
    *("remove_extra_whitespaces", "precompiled_charsmap", "add_sep_token", "suppress_tokens"),
    *("normalizer.lowercase", "normalizer.strip_accents"),
}
_PREFIX = "tokenizer.ggml."
_SENTENCE_PIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # of a SentencePiece file that names none


def check_keys(fields: Mapping[str, Any]) -> None:
    """Raises TokenizerError for a key that asks for what is not supported; warns of keys that nobody knows."""
    for key, value in fields.items():
        if not key.startswith("tokenizer.") or key.startswith(_IGNORED_ELSEWHERE):
            continue
        name = key.removeprefix(_PREFIX)
        if name in _REFUSED_UNLESS_EMPTY:
            if value:
                shown = f"{len(value)} values" if isinstance(value, list) else value
                raise TokenizerError(
                    f"the GGUF metadata has {key!r} ({shown}), which is not supported: texts would get other tokens. "
                    "Use the model's Hugging Face directory instead"
                )
        elif name not in _READ | _IGNORED:
            _log.warning("the GGUF key %r is not known and is left out", key)


def tokens_of(fields: Mapping[str, Any]) -> list[str]:
    """The vocabulary by id. As llama.cpp has it, tokens without text get one that says so."""
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(required(fields, "tokens"))]
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if first.setdefault(token, index) != index:
            raise TokenizerError(
                f"the GGUF vocabulary has {token!r} twice, as tokens {first[token]} and {index}; the file is damaged"
            )
    return tokens


def types_of(fields: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """Each token's type; all are 1 (text) in a file that has none."""
    types = fields.get(f"{_PREFIX}token_type")
    if types is None:
        return [1] * len(tokens)
    if not isinstance(types, list) or len(types) < len(tokens):
        found = len(types) if isinstance(types, list) else repr(types)
        raise TokenizerError(
            f"the GGUF metadata has {found} values in 'tokenizer.ggml.token_type' for {len(tokens)} tokens; "
            "the file is damaged"
        )
    return types


def flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = fields.get(f"{_PREFIX}{name}", default)
    if not isinstance(value, bool):
        raise TokenizerError(f"GGUF metadata '{_PREFIX}{name}' must be true or false, got {value!r}")
    return value


def required(fields: Mapping[str, Any], key: str) -> list[Any]:
    value = fields.get(f"{_PREFIX}{key}")
    if not isinstance(value, list):
        raise TokenizerError(
            f"the GGUF metadata has no 'tokenizer.ggml.{key}'; the file has no usable tokenizer"
        )
    return value


def ids_of(tokens: list[str]) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(tokens)}


def special_token_ids(fields: Mapping[str, Any], role: str) -> tuple[int, ...]:
    """The ids of the tokens that have a role ("bos", "eot"): mostly one or none. Raises ConfigError for no ids."""
    found: list[int] = []
    for key in (f"{_PREFIX}{role}_token_id", f"{_PREFIX}{role}_token_ids"):
        found += as_token_ids(fields.get(key), f"GGUF metadata {key!r}")
    default = _SENTENCE_PIECE_IDS.get(role)
    if default is None or fields.get(f"{_PREFIX}model") != "llama" or f"{_PREFIX}{role}_token_id" in fields:
        return tuple(found)
    return (*found, default) if default < len(fields.get(f"{_PREFIX}tokens", ())) else tuple(found)
