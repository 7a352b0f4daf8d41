"""Configurations of published models, for tests that need no weights."""

from __future__ import annotations

from interlace.models.config import ModelConfig, RopeConfig

SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    max_position=8192,
    rope=RopeConfig(theta=1e5),
    tie_word_embeddings=True,
)
