"""Reads the rotary embedding of a Hugging Face config.json: the base, and the scaling with its parameters.

As transformers reads it, except that keys which transformers would leave out with a warning are refused: they would
have changed what the model computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interlace.errors import ConfigError
from interlace.models.config import FULL_ATTENTION, SLIDING_ATTENTION, RopeConfig
from interlace.models.hf.values import integer, mapping, number, numbers

_OF_ALL_KINDS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
}
_NOTES = {
    "finetuned",
    "mrope_section",
}  # how the weights came about; the three positions of a token of text are one
_KEYS = {  # that each kind has beyond these
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
}
_OTHER_NAMES = {None: "default", "su": "longrope"}


def read_hf_ropes(
    config: Mapping[str, Any], theta: float, local_theta: float, max_position: int
) -> tuple[RopeConfig, RopeConfig]:
    """Reads the rotations of the layers that see the whole text, and of those with a window (Gemma 3).

    New files have both in rope_parameters; old ones rope_theta and rope_scaling, and rope_local_base_freq.
    """
    both = mapping(config, "rope_parameters")
    if unknown := sorted(set(both) - {FULL_ATTENTION, SLIDING_ATTENTION}):
        raise ConfigError(
            f"config.json: rope_parameters has {unknown[0]!r}; expected one object for each kind of layers, "
            f"{FULL_ATTENTION!r} and {SLIDING_ATTENTION!r}"
        )
    outside = {key: config.get(key) for key in ("rope_theta", "rope_scaling", "partial_rotary_factor")}
    full = {key: value for key, value in outside.items() if value is not None}
    local_theta = number(config, "rope_local_base_freq", local_theta)
    return (
        read_hf_rope({**full, "rope_parameters": mapping(both, FULL_ATTENTION)}, theta, max_position),
        read_hf_rope({"rope_parameters": mapping(both, SLIDING_ATTENTION)}, local_theta, max_position),
    )


def read_hf_rope(
    config: Mapping[str, Any], default_theta: float, max_position: int, default_original: int | None = None
) -> RopeConfig:
    """Old files have rope_theta and rope_scaling, newer ones rope_parameters holding both."""
    old, new = mapping(config, "rope_scaling"), mapping(config, "rope_parameters")
    scaling = old or new
    theta = number(scaling, "rope_theta", number(config, "rope_theta", default_theta))
    for named in (scaling, config):
        partial = number(named, "partial_rotary_factor", 1.0)
        if partial != 1.0:
            raise ConfigError(f"config.json: partial_rotary_factor {partial} is not supported, expected 1.0")
    kind = _kind(scaling)
    original = integer(scaling, "original_max_position_embeddings", max_position)
    if kind in ("llama3", "yarn", "longrope"):  # for these the same key outside wins
        original = integer(config, "original_max_position_embeddings", default_original or original)
    match kind:
        case "linear":
            stated = integer(scaling, "original_max_position_embeddings", 0)
            return RopeConfig(theta, "linear", factor=number(scaling, "factor"), original_max_position=stated)
        case "dynamic":
            return RopeConfig(
                theta, "dynamic", factor=number(scaling, "factor"), original_max_position=max_position
            )
        case "llama3":
            return _llama3(scaling, theta, original)
        case "yarn":
            return _yarn(scaling, theta, original, max_position)
        case "longrope":
            return _longrope(scaling, theta, original, max_position)
    return RopeConfig(theta)


def _kind(scaling: Mapping[str, Any]) -> str:
    named = scaling.get("rope_type", scaling.get("type"))
    kind = _OTHER_NAMES.get(named, named) if isinstance(named, str | None) else named
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ConfigError(
            f"rope scaling {named!r} is not supported; supported are {', '.join(_KEYS)} "
            "(remove rope_scaling from config.json to run within the unscaled context)"
        )
    for key in sorted(set(scaling) - _OF_ALL_KINDS - _NOTES - _KEYS[kind]):
        if scaling[key] is None or (key, scaling[key]) == ("factor", 1):
            continue
        if kind == "default" and named is None:
            raise ConfigError(
                f"config.json: the rope scaling has {key!r} and no rope_type; add the one that is meant, one of "
                f"{', '.join(_KEYS)}"
            )
        raise ConfigError(
            f"config.json: rope scaling {kind!r} with {key!r} is not supported, got {scaling[key]!r}; "
            "remove the key to run without it"
        )
    return kind


def _llama3(scaling: Mapping[str, Any], theta: float, original: int) -> RopeConfig:
    return RopeConfig(
        theta,
        "llama3",
        factor=number(scaling, "factor"),
        original_max_position=original,
        low_freq_factor=number(scaling, "low_freq_factor"),
        high_freq_factor=number(scaling, "high_freq_factor"),
    )


def _yarn(scaling: Mapping[str, Any], theta: float, original: int, max_position: int) -> RopeConfig:
    _check_original("yarn", original, 1)
    factor = number(scaling, "factor", max_position / original)
    return RopeConfig(
        theta,
        "yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=number(scaling, "beta_fast", 32.0) or 32.0,
        beta_slow=number(scaling, "beta_slow", 1.0) or 1.0,
        truncate=bool(scaling.get("truncate", True)),
        attention_factor=number(scaling, "attention_factor", _yarn_attention_factor(scaling, factor)),
    )


def _yarn_attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    mscale, all_dims = number(scaling, "mscale", 0.0), number(scaling, "mscale_all_dim", 0.0)
    if mscale and all_dims:
        return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dims)
    return yarn_magnitude(factor)


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's scaling of cos and sin for a context `factor` times longer (arXiv 2309.00071, §3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(scaling: Mapping[str, Any], theta: float, original: int, max_position: int) -> RopeConfig:
    _check_original("longrope", original, 2)
    factor = number(scaling, "factor", max_position / original)
    magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeConfig(
        theta,
        "longrope",
        original_max_position=original,
        attention_factor=number(scaling, "attention_factor", magnitude),
        short_divisors=numbers(scaling, "short_factor"),
        long_divisors=numbers(scaling, "long_factor"),
    )


def _check_original(kind: str, original: int, least: int) -> None:
    if original < least:
        raise ConfigError(
            f"rope scaling {kind!r} needs an original_max_position_embeddings of at least {least}, got {original}"
        )
