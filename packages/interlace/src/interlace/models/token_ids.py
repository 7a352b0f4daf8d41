"""Reads token ids out of models' files, which have several ways to say that there is none."""

from __future__ import annotations

from typing import Any

from interlace.errors import ConfigError

_NONE = (-1, 2**32 - 1)  # the second is the first, in GGUF's unsigned numbers


def as_token_ids(value: Any, name: str) -> tuple[int, ...]:
    """The ids that `value` holds: one, or a list of them. None and -1 stand for no id.

    Raises:
        ConfigError: it holds anything else; `name` is what the message calls it.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= -1 for v in values):
        raise ConfigError(f"{name} must be a token id or a list of them, -1 or null for none, got {value!r}")
    return tuple(token for token in values if token not in _NONE)
