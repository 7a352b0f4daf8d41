"""Rope tables equal transformers', for every kind of scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interlace.models.config import ModelConfig, RopeConfig
from interlace.models.rope import cos_sin_table, frequencies

SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "yarn_with_attention_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "attention_factor": 0.7,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "yarn_untruncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "truncate": False,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_table_equals_transformers(scaling: dict[str, Any], head_dim: int, theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    oracle_config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": theta, **scaling},
    )
    positions = torch.arange(1024)[None]
    cos, sin = LlamaRotaryEmbedding(oracle_config)(torch.zeros(1), positions)
    config = ModelConfig.from_hf(oracle_config.to_dict())
    table = cos_sin_table(config.rope, head_dim, 1024)
    assert table.shape == (1024, head_dim)
    expected = torch.cat([cos[0, :, : head_dim // 2], sin[0, :, : head_dim // 2]], dim=1)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)


def test_divisors_divide_each_frequency() -> None:
    """The way GGUF files carry Llama 3.1's scaling gives the same table as the formula."""
    llama3 = RopeConfig(500_000.0, "llama3", factor=8.0, original_max_position=256)
    divisors = frequencies(RopeConfig(500_000.0), 64) / frequencies(llama3, 64)
    by_divisors = RopeConfig(500_000.0, "divisors", divisors=tuple(divisors.tolist()))
    torch.testing.assert_close(
        cos_sin_table(by_divisors, 64, 300), cos_sin_table(llama3, 64, 300), rtol=0, atol=1e-4
    )
