"""The shapes that are run, their prompts, and how a run becomes one number."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interlace.errors import BenchError

Measure = Literal["prefill", "decode", "job"]
MIXING = 1_000_003  # a prime: seeds of prompts that differ
FIRST_PROMPT_ID = 256  # below it vocabularies keep special tokens and single bytes


@dataclass(frozen=True)
class Generated:
    """One run of a system: greedy tokens per sequence, and when they appeared (seconds from the start)."""

    tokens: list[list[int]]
    first_s: float  # every sequence has its first token
    num_at_first: int  # tokens of the whole batch by then
    total_s: float

    @classmethod
    def from_reply(cls, reply: dict[str, Any]) -> Generated:
        """Read a worker's reply; keys that only some systems give are left out."""
        return cls(**{name: reply[name] for name in ("tokens", "first_s", "num_at_first", "total_s")})


@dataclass(frozen=True)
class ServeWorkload:
    """One shape: `batch` prompts of `prompt_tokens` each, `output_tokens` generated for each."""

    measure: Measure
    batch: int
    prompt_tokens: int
    output_tokens: int

    @property
    def name(self) -> str:
        """Its name in tables and files."""
        if self.measure == "prefill":
            return f"prefill {self.prompt_tokens}"
        if self.measure == "decode":
            return f"decode batch {self.batch}"
        return f"job {self.batch} x {self.prompt_tokens}+{self.output_tokens}"

    @property
    def unit(self) -> str:
        """The unit of the rate."""
        return "prompt tokens/s" if self.measure == "prefill" else "output tokens/s"

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Random token ids, all different: nothing can be shared between prompts or kept from an earlier run."""
        shape = (self.batch, self.prompt_tokens)
        ids = np.random.default_rng([seed, self.prompt_tokens, self.batch]).integers(
            FIRST_PROMPT_ID, vocab_size, shape
        )
        return [[int(token) for token in row] for row in ids]

    def rate(self, run: Generated) -> float:
        """Tokens per second of what this workload measures.

        Raises: BenchError when the run did not produce exactly the tokens asked for.
        """
        self.check(run)
        if self.measure == "prefill":
            return self.batch * self.prompt_tokens / run.first_s
        if self.measure == "job":
            return self.batch * self.output_tokens / run.total_s
        return (self.batch * self.output_tokens - run.num_at_first) / (run.total_s - run.first_s)

    def check(self, run: Generated) -> None:
        """Raises: BenchError when sequences or tokens are missing or too many."""
        got, expected = [len(row) for row in run.tokens], [self.output_tokens] * self.batch
        if got != expected:
            raise BenchError(f"{self.name}: got {got} tokens per sequence; expected {expected}")


@dataclass(frozen=True)
class PrefixShapes:
    """Tokens of a prompt that are found, and those of its own behind them."""

    num_found: int
    num_own: int

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole prompt."""
        return self.num_found + self.num_own

    def prompt(self, beginning: int, end: int, vocab_size: int) -> list[int]:
        """Prompts of one `beginning` begin alike; each `end` is another."""
        first = _numbers(2 * beginning, self.num_found, vocab_size)
        return first + _numbers(2 * (beginning * MIXING + end) + 1, self.num_own, vocab_size)


FULL = (
    ServeWorkload("prefill", 1, 512, 1),
    ServeWorkload("prefill", 1, 2048, 1),
    ServeWorkload("decode", 1, 128, 64),
    ServeWorkload("decode", 8, 128, 64),
    ServeWorkload("job", 32, 256, 64),
)
QUICK = (
    ServeWorkload("prefill", 1, 64, 1),
    ServeWorkload("decode", 1, 16, 8),
    ServeWorkload("decode", 4, 16, 8),
    ServeWorkload("job", 4, 32, 8),
)
WARM_UP = ServeWorkload("job", 1, 32, 2)


def longest_sequence(workloads: tuple[ServeWorkload, ...]) -> int:
    """Tokens of the longest sequence, which a system's context must hold."""
    return max(w.prompt_tokens + w.output_tokens for w in workloads)


def whole_blocks(num_tokens: int) -> int:
    """`num_tokens`, rounded up to whole blocks of the KV cache."""
    from tokenweave.kernels import BLOCK_SIZE, blocks_for

    return blocks_for(num_tokens) * BLOCK_SIZE


def _numbers(seed: int, count: int, vocab_size: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(vocab_size) for _ in range(count)]
