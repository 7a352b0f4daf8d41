"""A small configuration as config.json has it, and the values that tests change in it."""

from __future__ import annotations

from typing import Any

from interlace.models.config import ModelConfig
from interlace.models.hf.config import read_hf_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 331,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def read(**changes: Any) -> ModelConfig:
    """The configuration of LLAMA with these keys changed."""
    return read_hf_config({**LLAMA, **changes})


def longrope(**changes: Any) -> dict[str, Any]:
    """A rope_scaling of that kind, with these keys changed."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    return {
        "rope_scaling": {
            "rope_type": "longrope",
            "original_max_position_embeddings": 64,
            **factors,
            **changes,
        }
    }
