"""SmolLM2: greedy tokens equal transformers' over 1, 2 and 3 ranks, and a rank's memory shrinks with their number."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.engine.output import RequestOutput
from interlace.errors import ModelNotFound
from interlace.models.sources import load_model

MAX_TOKENS = 24
TIE = 1e-3  # float32 logits closer than this are a tie: the order of sums may decide it
QUESTIONS = [
    "What is the capital of France?",
    "Name three primary colours.",
    "Write a haiku about the sea.",
    "What is 17 plus 25?",
    "Explain photosynthesis to a child.",
    "Who wrote Romeo and Juliet?",
    "List the planets of the solar system.",
    "Translate 'good morning' into Spanish.",
    "What is the boiling point of water?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "What is the tallest mountain on Earth?",
    "How do I tie a tie?",
    "Describe a sunset in one sentence.",
    "What does CPU stand for?",
    "Summarise the story of Cinderella.",
    "What is the speed of light?",
    "Name a famous painting by Leonardo da Vinci.",
    "How many continents are there?",
    "What is the largest ocean? " * 12,  # crosses several blocks
    "Repeat after me: overlap, overlap, overlap.",
]
# By question: transformers' own greedy tokens. No choice among them is nearer to a tie than 0.06.
ANSWERS = {
    "What is the capital of France?": [
        *(504, 3575, 282, 4649, 314, 7042, 30, 2, 198, 2, 1, 9690),
        *(198, 2, 198, 1, 4093, 198, 57, 5248, 3946, 288, 7198, 253),
    ],
    "Write a haiku about the sea.": [
        *(504, 6147, 282, 260, 3426, 28, 253, 13879, 6122, 28, 198, 49),
        *(9154, 303, 5082, 282, 260, 10393, 28, 198, 49, 13151, 282, 260),
    ],
    "Summarise the story of Cinderella.": [
        *(51, 526, 45696, 314, 253, 8170, 10215, 282, 253, 29347, 617, 314),
        *(33814, 288, 253, 1029, 282, 18580, 284, 6122, 28, 564, 281, 260),
    ],
}


@pytest.fixture(scope="module")
def path() -> Path:
    """The model's file."""
    try:
        return load_model("smollm2", quiet=True).path
    except ModelNotFound as error:
        pytest.skip(f"smollm2 cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def oracle(path: Path) -> Any:
    """transformers' own model, out of the same file."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def answers(questions: Iterable[str], tp: int) -> list[RequestOutput]:
    conversations = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    with LLM("smollm2", tp=tp, dtype="float32", num_kv_blocks=400) as llm:
        return llm.chat(conversations, params)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("tp", [1, 2])
def test_greedy_tokens_are_those_that_transformers_chose(tp: int) -> None:
    assert [output.token_ids for output in answers(ANSWERS, tp)] == list(ANSWERS.values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tp", [1, 2, 3])
def test_greedy_tokens_equal_transformers(oracle: Any, tp: int) -> None:
    ties = 0
    for output in answers(QUESTIONS, tp):
        ties += assert_greedy(oracle, tuple(output.prompt_token_ids), tuple(output.token_ids))
    assert ties <= 2, "more ties than chance allows"


@cache
def assert_greedy(oracle: Any, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> int:
    """Check each token to be the oracle's choice after those before it, up to a tie. Returns the number of ties.

    The same answer of another number of ranks is not computed again.
    """
    with torch.inference_mode():
        logits = oracle(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    assert len(logits) == len(tokens) == MAX_TOKENS
    for row, token in zip(logits, tokens, strict=True):
        if int(row.argmax()) != token:
            margin = float(row.max() - row[token])
            assert margin < TIE, f"chose {token}, whose logit is {margin} below the best, {int(row.argmax())}"
            return 1
    return 0


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("fewer", "more"), [(1, 2), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_peak_memory_per_rank_falls_with_the_number_of_ranks(fewer: int, more: int) -> None:
    """Measured in processes of their own, as the kernel counts it (VmHWM), weights, torch and all."""
    peak_bytes = {tp: max(generate(tp)["memory_per_rank_bytes"]) for tp in (fewer, more)}
    weights_bytes = 134_515_008 * 4
    expected = weights_bytes / fewer - weights_bytes / more
    assert peak_bytes[fewer] - peak_bytes[more] > 0.8 * expected, peak_bytes


def generate(tp: int) -> dict[str, Any]:
    """Returns the JSON that the command line prints about one short answer."""
    options = ["--dtype", "float32", "--max-tokens", "1", "--num-kv-blocks", "16", "--json"]
    script = Path(sys.executable).with_name("interlace")
    command = [str(script), "generate", "--model", "smollm2", "--tp", str(tp)]
    done = subprocess.run(
        [*command, *options, "Hello"], capture_output=True, text=True, check=True, timeout=120
    )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed
