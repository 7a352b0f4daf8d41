"""Heads of a size that native kernels do not have: widened with zeros, with the answers that they had."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.launch import start
from interlace.models.head_padding import HeadPadding
from support.driver import logits_of, ranks_in_threads
from support.tiny_models import VOCAB_SIZE, make_model

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_20": ("llama", {"head_dim": 20, "attention_bias": True}),
    "llama_8": ("llama", {"head_dim": 8, "num_attention_heads": 8, "num_key_value_heads": 8}),
    "llama_2": ("llama", {"head_dim": 2, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "llama_dynamic_36": (
        "llama",
        {
            "head_dim": 36,
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "qwen3_24": ("qwen3", {"head_dim": 24, "num_attention_heads": 5, "num_key_value_heads": 1}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(tmp_path: Path, shape: str, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForCausalLM

    family, changes = SHAPES[shape]
    make_model(tmp_path, family, **changes)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (17, 40)]
    with torch.inference_mode():
        expected = [oracle(torch.tensor([prompt])).logits[0] for prompt in prompts]
    for tp in (1, 2):
        with ranks_in_threads(tmp_path, tp, num_kv_blocks=8, kernels="native") as group:
            whole = logits_of(group, prompts)
            for got, one in zip(whole, expected, strict=True):
                torch.testing.assert_close(got, one, rtol=0, atol=1e-4)
            for got, one in zip(logits_of(group, prompts, chunk=7), whole, strict=True):
                assert torch.equal(got, one), "chunks and whole prompts differ"
    width = {"2": 16, "8": 16, "20": 32, "24": 32, "36": 48}[shape.rpartition("_")[2]]
    assert [f"compute as {width}:" in record.message for record in caplog.records] == [True, True]


@pytest.mark.parametrize(("head_dim", "kernels"), [(16, "native"), (20, "reference")])
def test_heads_that_the_kernels_have_are_left_alone(
    tmp_path: Path, head_dim: int, kernels: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(tmp_path, head_dim=head_dim)
    with caplog.at_level(logging.WARNING):
        group = start(
            EngineConfig(str(tmp_path), communicator="null", num_kv_blocks=4, threads=1, kernels=kernels)
        )
        group.close()
    assert caplog.records == []


def test_each_half_of_a_head_is_widened() -> None:
    padding = HeadPadding.to_multiple(4, 6)
    assert padding == HeadPadding(4, 6)
    assert padding.vector(torch.arange(8.0)).tolist() == [0, 1, 0, 2, 3, 0, 4, 5, 0, 6, 7, 0]
    weight = torch.arange(16.0).view(8, 2)
    assert padding.rows(weight)[:, 0].tolist() == [0, 2, 0, 4, 6, 0, 8, 10, 0, 12, 14, 0]
    assert torch.equal(padding.columns(weight.T), padding.rows(weight).T)
    assert padding.rows(torch.empty(0, 5)).shape == (0, 5)
    assert padding.columns(torch.empty(5, 0)).shape == (5, 0)
    assert HeadPadding.to_multiple(64, 16) == HeadPadding(64, 64)
