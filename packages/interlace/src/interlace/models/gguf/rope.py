"""Reads the rotary embedding of a GGUF file: its metadata, and the tensors that hold divisors of its frequencies.

As llama.cpp reads it: a factor without a kind of scaling is linear scaling; divisors come on top of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from interlace.errors import ConfigError
from interlace.models.config import RopeConfig
from interlace.models.hf.rope import yarn_magnitude

DIVISORS = "rope_freqs.weight"  # carries Llama 3.1's scaling
SHORT_DIVISORS, LONG_DIVISORS = "rope_factors_short.weight", "rope_factors_long.weight"
_KINDS = ("none", "linear", "yarn", "longrope")


class Values(Protocol):
    """The checked metadata of one architecture."""

    def text(self, key: str, default: str) -> str: ...
    def number(self, key: str, default: float | None = None) -> float: ...
    def integer(self, key: str, default: int | None = None) -> int: ...


def read_gguf_rope(values: Values, max_position: int, default_kind: str = "linear") -> RopeConfig:
    """Reads the metadata. The divisors are in tensors: see `with_divisors`."""
    theta = values.number("rope.freq_base", 10_000.0)
    kind = values.text("rope.scaling.type", default_kind)
    if kind not in _KINDS:
        raise ConfigError(f"rope scaling {kind!r} is not supported; supported are {', '.join(_KINDS)}")
    old_factor = values.number("rope.scale_linear", 1.0)
    factor = float(values.number("rope.scaling.factor", old_factor)) or 1.0  # 0 means unscaled too
    magnitude = float(values.number("rope.scaling.attn_factor", 1.0))
    stated = values.integer("rope.scaling.original_context_length", 0)
    original = stated or max_position
    if kind == "longrope":
        return RopeConfig(
            theta, "longrope", factor=factor, original_max_position=original, attention_factor=magnitude
        )
    if kind == "none" or factor == 1:
        return RopeConfig(theta, attention_factor=magnitude)
    if kind == "linear":
        return RopeConfig(
            theta, "linear", factor=factor, original_max_position=stated, attention_factor=magnitude
        )
    return RopeConfig(
        theta,
        "yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=values.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=values.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=magnitude * yarn_magnitude(factor),
    )


def with_divisors(
    rope: RopeConfig, tensors: Mapping[str, object], read: Callable[[str], tuple[float, ...]]
) -> RopeConfig:
    """`rope` with the divisors that the file's tensors hold; `read` gives the values of one.

    As llama.cpp: one set for all texts wins over two for short and long ones, which are read for "longrope" alone.
    Without any that kind is linear.
    """
    is_long = rope.scaling == "longrope"
    if DIVISORS in tensors or not (is_long and {SHORT_DIVISORS, LONG_DIVISORS} & set(tensors)):
        divisors = read(DIVISORS) if DIVISORS in tensors else ()
        kind = ("linear" if rope.factor != 1 else None) if is_long else rope.scaling
        return replace(rope, scaling=kind, divisors=divisors)
    for tensor in (SHORT_DIVISORS, LONG_DIVISORS):
        if tensor not in tensors:
            raise ConfigError(
                f"rope scaling 'longrope' needs the tensor {tensor!r}, which the file does not have"
            )
    return replace(rope, short_divisors=read(SHORT_DIVISORS), long_divisors=read(LONG_DIVISORS))
