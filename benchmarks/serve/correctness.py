"""Before any timing: the systems answer real prompts with the same greedy tokens.

A float32 system must agree with the oracle (transformers in float32, else Interlace's first float32 system) up to the
first near-tie of the oracle's logits. What runs in fewer bits is compared too, and only reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from interlace.errors import BenchError

if TYPE_CHECKING:
    from interlace.models.tokenizer import Tokenizer

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Write one sentence about the sea.",
    "List three prime numbers above ten.",
    "Explain in simple words why the sky is blue.",
)
NUM_TOKENS = 32
TIE = 1e-3  # logits closer than this may swap between two correct float32 programs


@dataclass(frozen=True)
class Agreement:
    """How one system's greedy tokens compare with the oracle's."""

    num_prompts: int
    num_identical: int  # prompts answered with exactly the oracle's tokens
    mean_prefix: float  # tokens before the first difference, on average

    def to_json(self) -> dict[str, float]:
        """The fields as they are."""
        return asdict(self)


def chat_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """The questions as the model's chat template puts them."""
    return [tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in QUESTIONS]


def matching_prefix(got: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = zip(got, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(expected)))


def compare(answers: list[list[int]], oracle: list[list[int]]) -> Agreement:
    """Agreement over all prompts."""
    prefixes = [matching_prefix(got, expected) for got, expected in zip(answers, oracle, strict=True)]
    identical = sum(got == expected for got, expected in zip(answers, oracle, strict=True))
    return Agreement(len(oracle), identical, sum(prefixes) / len(prefixes))


def check_exact(
    name: str, answers: list[list[int]], oracle: list[list[int]], margins: list[list[float]] | None
) -> None:
    """Raises: BenchError where a float32 system leaves the oracle's tokens at no near-tie."""
    for index, (got, expected) in enumerate(zip(answers, oracle, strict=True)):
        at = matching_prefix(got, expected)
        if at == len(expected) or (margins is not None and margins[index][at] < TIE):
            continue
        margin = f"{margins[index][at]:.4f}" if margins is not None else "unknown"
        raise BenchError(
            f"{name} is wrong on prompt {index}: got {got[at]} as token {at}; expected {expected[at]} "
            f"(margin {margin}, a tie is below {TIE}). Nothing was timed"
        )
