"""The products of a model on one rank, and what their times in two dtypes say about a job."""

from __future__ import annotations

import math
from dataclasses import dataclass

from interlace.models.config import ModelConfig
from interlace.models.shard import Shard

PROMPT_TOKENS, NEW_TOKENS = 512, 128  # of each sequence of a job
BATCH = 8  # sequences of the larger of the two jobs
TIE = 1.05  # bfloat16 may take so many times as long: it takes half of the memory


@dataclass(frozen=True)
class Products:
    """The facts about a model that decide which dtype is faster, as far as products of matrices do."""

    matrices: tuple[tuple[int, int], ...]  # (outputs, inputs), of one layer on this rank
    layer_weights: int  # of all layers: those that one token is multiplied with
    head_weights: int  # of the output head
    blocks: str | None = None  # the format of weights in blocks; None: they are dense

    @classmethod
    def of(cls, config: ModelConfig, shard: Shard, blocks: str | None = None) -> Products:
        """The products of `shard` with a layer of the commonest kind."""
        hidden, mlp = config.hidden_size, len(shard.columns(config.intermediate_size))
        queries, keys = len(shard.heads) * config.head_dim, len(shard.kv_heads) * config.head_dim
        attention = ((queries + 2 * keys, hidden), (hidden, queries))
        gated = ((2 * mlp, hidden), (hidden, mlp))
        experts = config.experts_per_token if config.num_experts else 1
        weights = sum(n * k for n, k in attention) + experts * sum(n * k for n, k in gated)
        matrices = tuple((n, k) for n, k in (*attention, *gated) if n and k)
        return cls(matrices, config.num_layers * weights, len(shard.vocab) * hidden, blocks)


@dataclass(frozen=True)
class ProductTimes:
    """Seconds for each weight, in one dtype."""

    prompt_s: float  # of one token of a prompt
    decode_s: float  # of one step that decodes one sequence
    batch_s: float  # of one step that decodes BATCH sequences

    def __post_init__(self) -> None:
        for value in (self.prompt_s, self.decode_s, self.batch_s):
            if not 0 < value < math.inf:
                raise ValueError(f"got a time of {value} s; expected a finite positive one")

    def job_s(self, products: Products, num_seqs: int) -> float:
        """`num_seqs` (1 or BATCH) prompts of PROMPT_TOKENS, and NEW_TOKENS decoded behind each, all at a time."""
        step_s = self.decode_s if num_seqs == 1 else self.batch_s
        prompts = num_seqs * PROMPT_TOKENS * products.layer_weights * self.prompt_s
        return prompts + NEW_TOKENS * (products.layer_weights + products.head_weights) * step_s


@dataclass(frozen=True)
class Comparison:
    """The times of the same products in both dtypes."""

    products: Products
    float32: ProductTimes
    bfloat16: ProductTimes

    @property
    def slowdown(self) -> float:
        """The time of a job in bfloat16 over that in float32: the geometric mean of one sequence and of BATCH."""
        alone, together = (
            self.bfloat16.job_s(self.products, num_seqs) / self.float32.job_s(self.products, num_seqs)
            for num_seqs in (1, BATCH)
        )
        return math.sqrt(alone * together)

    @property
    def faster(self) -> str:
        """The dtype to take."""
        return "bfloat16" if self.slowdown <= TIE else "float32"

    @property
    def text(self) -> str:
        """The figures, for a reader."""
        prompt, decode, batch = (
            getattr(self.float32, name) / getattr(self.bfloat16, name)
            for name in ("prompt_s", "decode_s", "batch_s")
        )
        return (
            f"in bfloat16 prompts are {prompt:.2f} x as fast as in float32, decoding {decode:.2f} x, {BATCH} sequences "
            f"at a time {batch:.2f} x; a job takes {self.slowdown:.2f} x the time (measured)"
        )


EXAMPLE = Products(  # SmolLM2's on one rank
    matrices=((960, 576), (576, 576), (3072, 576), (576, 1536)),
    layer_weights=106_168_320,
    head_weights=28_311_552,
)
