"""Reads the vocabulary out of GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.errors import TokenizerError


def required(fields: Mapping[str, Any], key: str) -> list[Any]:
    value = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise TokenizerError(
            f"the GGUF metadata has no 'tokenizer.ggml.{key}'; the file has no usable tokenizer"
        )
    return value


def ids_of(tokens: list[str]) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(tokens)}
