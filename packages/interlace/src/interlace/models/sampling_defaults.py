"""The sampling that a model's authors recommend, by the names that SamplingParams has.

It is in generation_config.json, or in a GGUF file's `general.sampling` keys. How tokens are chosen is taken; how many
(`max_new_tokens`), what ends a text, and methods that are not there (`typical_p`, `num_beams`, `mirostat`) are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlace.models.json_file import read_optional_json

TAKEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GGUF_NAMES = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}
_GGUF_PREFIX = "general.sampling."


def defaults_from_directory(directory: Path) -> dict[str, Any]:
    """Reads generation_config.json; `do_sample` false is temperature 0. Values are as they are there, unchecked."""
    given = read_optional_json(directory / "generation_config.json") or {}
    found = {name: given[name] for name in TAKEN if given.get(name) is not None}
    return {**found, "temperature": 0.0} if given.get("do_sample") is False else found


def defaults_from_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a GGUF file's metadata."""
    keys = [key.removeprefix(_GGUF_PREFIX) for key in fields if key.startswith(_GGUF_PREFIX)]
    found = {_GGUF_NAMES.get(key, key): fields[_GGUF_PREFIX + key] for key in keys}
    return {name: found[name] for name in TAKEN if name in found}
