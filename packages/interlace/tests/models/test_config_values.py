"""Any value under any key gives a configuration or a ConfigError."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import ConfigError
from interlace.models.config import weight_shapes
from interlace.models.families import FAMILIES
from interlace.models.hf.config import read_hf_config
from support.hf_configs import LLAMA, longrope, read

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=4,
)
FULL = {
    **LLAMA,
    "rope_theta": 10_000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32, "mscale": 1.0},
    "original_max_position_embeddings": 128,
    "sliding_window": 8,
    "use_sliding_window": True,
    "max_window_layers": 0,
    "layer_types": ["sliding_attention"] * 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "eos_token_id": [2],
}


def full(family: str) -> dict[str, Any]:
    """A configuration with every key that the family has."""
    absent = {
        "llama": ("window", "layer_types", "experts"),
        "mistral": ("window_layers", "experts"),
        "mixtral": ("window_layers",),
        "phi3": ("window_layers", "experts"),
        "qwen2_moe": ("window_layers",),
        "qwen3_moe": ("window_layers",),
        "olmo2": ("window", "layer_types", "experts"),
    }
    return {
        key: value
        for key, value in {**FULL, "model_type": FAMILIES[family].hf.model_type}.items()
        if not any(part in key for part in absent.get(family, ("experts",)))
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_family_together_gives_a_configuration(family: str) -> None:
    assert weight_shapes(read_hf_config(full(family)))


KNOWN = ["logit_scale", "layer_types", "is_causal", "num_experts", "attention_multiplier", "no_rope_layers"]


@given(family=st.sampled_from(sorted(FAMILIES)), key=st.sampled_from(sorted(FULL) + KNOWN), value=JSON)
def test_any_value_gives_a_configuration_or_a_config_error(family: str, key: str, value: Any) -> None:
    try:
        config = read_hf_config({**full(family), key: value})
        assert weight_shapes(config)
    except ConfigError:
        pass


@given(
    kind=st.sampled_from(["linear", "dynamic", "llama3", "yarn", "longrope"]),
    key=st.sampled_from(
        sorted({"type", "rope_theta", "beta_slow", "attention_factor", *longrope()["rope_scaling"]})
    ),
    value=JSON,
)
def test_any_value_of_rope_scaling_gives_a_configuration_or_a_config_error(
    kind: str, key: str, value: Any
) -> None:
    factors = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    whole = {**longrope()["rope_scaling"], **factors, "rope_type": kind, key: value}
    with suppress(ConfigError):
        assert read(rope_scaling=whole).max_position >= 256
