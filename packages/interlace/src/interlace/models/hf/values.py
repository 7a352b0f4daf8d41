"""The values of a Hugging Face configuration, checked: each as its kind, or a ConfigError that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.errors import ConfigError

_INTEGER_LIMIT = 2**63  # as far as the integers of tensors go
_HUGE = 1e30  # beyond any value of a configuration; NaN and infinity are not below it


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"config.json has no {key!r}; is it the configuration of a language model?")
    if isinstance(value, bool) or not isinstance(value, int) or not abs(value) < _INTEGER_LIMIT:
        raise ConfigError(f"config.json: {key!r} must be a whole number of 64 bits, got {value!r}")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"config.json has no {key!r}, which its rope scaling needs")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _HUGE:
        raise ConfigError(f"config.json: {key!r} must be a number, got {value!r}")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = config.get(key, default)
    if value not in (None, True, False):
        raise ConfigError(f"config.json: {key!r} must be true or false, got {value!r}")
    return bool(value)


def mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"config.json: {key!r} must be an object, got {value!r}")
    return value or {}


def numbers(config: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """A list of numbers, which must be there."""
    values = config.get(key)
    if not isinstance(values, list):
        raise ConfigError(f"config.json: {key!r} must be a list of numbers, got {values!r}")
    return tuple(number({key: value}, key) for value in values)
