"""Tiny models of every family, through the whole engine: greedy tokens equal transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interlace import LLM, SamplingParams
from support.tiny_models import FAMILIES, VOCAB_SIZE, build, make_model

PROMPTS = [[(7 * i + 3 * p) % VOCAB_SIZE for i in range(length)] for p, length in enumerate((5, 40, 17))]
MAX_TOKENS = 12
ONE_OF_EACH = sorted({model_type: name for name, (model_type, _) in reversed(FAMILIES.items())}.values())


def oracle_tokens(family: str, prompt: list[int]) -> list[int]:
    model = build(family)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(MAX_TOKENS):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_greedy_tokens_equal_transformers(family: str, tmp_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    with LLM(str(make_model(tmp_path, family)), dtype="float32", threads=1) as llm:
        answers = [output.token_ids for output in llm.generate(PROMPTS, params)]
    assert answers == [oracle_tokens(family, prompt) for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "qwen2_moe"])
def test_ranks_in_processes_of_their_own_give_the_same_tokens(family: str, tmp_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    with LLM(str(make_model(tmp_path, family)), tp=2, dtype="float32", threads=1) as llm:
        answers = [output.token_ids for output in llm.generate(PROMPTS, params)]
    assert answers == [oracle_tokens(family, prompt) for prompt in PROMPTS]
