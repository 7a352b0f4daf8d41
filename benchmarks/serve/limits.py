"""The physical limits of a model on this machine: the rates that GEMM alone and memory alone would allow."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.harness.worker import Worker, turn
from emucxl.bench.harness import part_of

if TYPE_CHECKING:
    from emucxl.bench.harness import Progress
    from interlace.models.config import ModelConfig

ITEM_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Shapes:
    """The sizes of a dense decoder that set its limits."""

    weights: tuple[tuple[int, int, int], ...]  # (n, k, count) of the matrices every token goes through
    head: tuple[int, int]  # (vocab, hidden), read once per step for the tokens that are sampled
    kv_elements_per_token: int  # of all layers
    query_elements_per_token: int = (
        0  # of all layers: every visible key is multiplied with them, and its value
    )

    @classmethod
    def of(cls, config: ModelConfig) -> Shapes:
        """For a mixture of experts: the experts one token runs through."""
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        experts = max(1, config.experts_per_token)
        per_layer = (
            ((heads + 2 * kv_heads) * dim, config.hidden_size, 1),
            (config.hidden_size, heads * dim, 1),
            (2 * config.intermediate_size, config.hidden_size, experts),
            (config.hidden_size, config.intermediate_size, experts),
        )
        return cls(
            weights=tuple((n, k, count * config.num_layers) for n, k, count in per_layer),
            head=(config.vocab_size, config.hidden_size),
            kv_elements_per_token=2 * kv_heads * dim * config.num_layers,
            query_elements_per_token=heads * dim * config.num_layers,
        )

    def flops(self, num_tokens: int) -> int:
        """Operations of one pass of `num_tokens` tokens through `weights`; a multiplication and an addition are two."""
        return sum(2 * num_tokens * n * k * count for n, k, count in self.weights)

    def pass_flops(self, batch: int, tokens: int, first_position: int = 0) -> int:
        """Operations of a pass of `tokens` tokens for each of `batch` sequences, with attention and a row of logits."""
        keys = tokens * first_position + tokens * (tokens + 1) // 2
        attention = 4 * self.query_elements_per_token * keys
        return self.flops(batch * tokens) + batch * (attention + 2 * self.head[0] * self.head[1])

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the matrices that a decode step reads."""
        elements = sum(n * k * count for n, k, count in self.weights) + self.head[0] * self.head[1]
        return elements * ITEM_BYTES[dtype]

    def kv_bytes(self, dtype: str, batch: int, context: int) -> int:
        """Bytes of the keys and values of `batch` sequences with `context` tokens each."""
        return batch * context * self.kv_elements_per_token * ITEM_BYTES[dtype]

    def step_bytes(self, dtype: str, batch: int, context: int, weight_bytes: int | None = None) -> int:
        """Bytes that one decode step of `batch` sequences with `context` tokens each must read.

        `weight_bytes`: of weights that are not in `dtype`, as keys and values are.
        """
        weights = self.weight_bytes(dtype) if weight_bytes is None else weight_bytes
        return weights + self.kv_bytes(dtype, batch, context)


def measure_limits(
    config: ModelConfig,
    threads: int,
    rounds: int,
    tokens: tuple[int, ...],
    progress: Progress | None = None,
) -> Limits:
    """The limits alone, without any system beside them."""
    limits, worker = Limits(Shapes.of(config), threads), Worker(sys.executable, "limits")
    try:
        for number in range(rounds):
            limits.sample(worker, sorted(ITEM_BYTES), tokens, part_of(progress, number, rounds))
    finally:
        worker.close()
    return limits


@dataclass
class Limits:
    """Samples of the limits, one per round, taken between the systems' turns."""

    shapes: Shapes
    threads: int
    read_bytes_per_s: list[float] = field(default_factory=list)
    copy_bytes_per_s: list[float] = field(default_factory=list)
    gemm_s: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)  # backend, dtype, tokens
    peak_flops_per_s: dict[str, list[float]] = field(default_factory=dict)  # "fma", "bf16", ...
    device: str = "cpu"

    def sample(
        self,
        worker: Worker,
        dtypes: list[str],
        tokens: tuple[int, ...],
        progress: Progress | None = None,
    ) -> None:
        """Measure everything once, in the worker's own turn."""
        with turn(worker):
            found = worker.ask("bandwidth", threads=self.threads, device=self.device)
            self.read_bytes_per_s.append(found["read_bytes_per_s"])
            self.copy_bytes_per_s.append(found["copy_bytes_per_s"])
            for loop, rate in worker.ask("peak", threads=self.threads, device=self.device).items():
                self.peak_flops_per_s.setdefault(loop, []).append(rate)
            products = list(product(dtypes, tokens))
            for number, (dtype, num_tokens) in enumerate(products):
                if progress is not None:
                    progress(number / len(products), f"products of {num_tokens} tokens, {dtype}")
                self._sample_gemm(worker, dtype, num_tokens)

    def _sample_gemm(self, worker: Worker, dtype: str, num_tokens: int) -> None:
        arguments = {"shapes": self.shapes.weights, "num_tokens": num_tokens, "threads": self.threads}
        reply = worker.ask("gemm", dtype=dtype, device=self.device, **arguments)
        for backend, result in reply["backends"].items():
            self.gemm_s.setdefault((backend, dtype, num_tokens), []).append(result["seconds"])

    def prefill_tokens_per_s(self, dtype: str, num_tokens: int) -> float | None:
        """The rate that GEMM alone would allow, with the faster backend; None where it was not measured."""
        medians = [
            median(samples)
            for (_, of_dtype, of_tokens), samples in self.gemm_s.items()
            if (of_dtype, of_tokens) == (dtype, num_tokens)
        ]
        return num_tokens / min(medians) if medians else None

    def decode_tokens_per_s(
        self, dtype: str, batch: int, context: int, weight_bytes: int | None = None
    ) -> float:
        """The rate at which every weight and every key can be read once per step; arguments as of `step_bytes`."""
        step_bytes = self.shapes.step_bytes(dtype, batch, context, weight_bytes)
        return batch * median(self.read_bytes_per_s) / step_bytes

    def to_json(self) -> dict[str, Any]:
        """Every sample, with rates in units of 1 per second."""
        return {
            "weights": self.shapes.weights,
            "head": self.shapes.head,
            "weight_bytes": {dtype: self.shapes.weight_bytes(dtype) for dtype in ITEM_BYTES},
            "read_bytes_per_s": self.read_bytes_per_s,
            "copy_bytes_per_s": self.copy_bytes_per_s,
            "peak_flops_per_s": self.peak_flops_per_s,
            "gemm": [
                {
                    "backend": backend,
                    "dtype": dtype,
                    "num_tokens": tokens,
                    "seconds": samples,
                    "flops_per_s": self.shapes.flops(tokens) / median(samples),
                }
                for (backend, dtype, tokens), samples in self.gemm_s.items()
            ],
        }
