"""The work of each step of a plan on one rank, from the model's configuration alone: matrix shapes, FLOPs, bytes moved.

Counted for one sequence that starts at position 0, or behind the keys that the pass fetches, with the logits of its
last token. A multiply and an add are two FLOPs; norms, activations and softmax are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from interlace.cli.plan_moves import NOTHING_MOVED, PlanMoves
from interlace.models.config import ModelConfig
from interlace.models.footprint import Formats, layers_bytes, weights_bytes
from interlace.models.shard import Shard
from tokenweave.geometry import BatchGeometry, parts_of
from tokenweave.kernels import BLOCK_SIZE
from tokenweave.plan import Step

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOGIT_BYTES = 4  # logits are float32


@dataclass(frozen=True)
class Gemm:
    """(m, k) x (k, n), done `times` times."""

    name: str
    m: int
    k: int
    n: int
    times: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n * self.times

    def __str__(self) -> str:
        times = f"{self.times} x " if self.times > 1 else ""
        return f"{self.name} {times}({self.m}, {self.k}) x ({self.k}, {self.n})"


@dataclass(frozen=True)
class Work:
    """One step on one rank. `bytes_given` is what this rank gives to a reduction or gather, `bytes_moved` what it moves
    between its memories; 0 elsewhere."""

    gemms: tuple[Gemm, ...] = ()
    note: str = ""
    other_flops: int = 0
    bytes_given: int = 0
    bytes_moved: int = 0

    @property
    def flops(self) -> int:
        return self.other_flops + sum(gemm.flops for gemm in self.gemms)

    @property
    def text(self) -> str:
        """One line per matrix product, then the note; a share without rows or columns multiplies nothing."""
        products = [str(gemm) for gemm in self.gemms if gemm.flops]
        idle = ["nothing: no share of the weights"] if self.gemms and not products else []
        return "\n".join([*products, *idle, *([self.note] if self.note else [])])


NOTHING_WANTED = Work(note="the last token is not in this part")


@dataclass(frozen=True)
class Workload:
    """One rank's part of a forward pass over `num_tokens` tokens."""

    config: ModelConfig
    shard: Shard
    num_tokens: int
    dtype: str
    split: int | None = None
    formats: Formats = field(default_factory=dict)  # of the weights that are held in blocks
    moves: PlanMoves = NOTHING_MOVED

    def rows(self, step: Step) -> range:
        """The token rows that `step` works on."""
        return (
            range(self.num_tokens) if step.part is None else parts_of(self.num_tokens, self.split)[step.part]
        )

    def of(self, step: Step) -> Work:
        """The work that `step` asks of this rank: from the method named as its handler; unknown where there is none."""
        describe: Callable[[Step], Work] | None = getattr(self, step.op.handler, None)
        return Work() if describe is None else describe(step)

    def embed(self, step: Step) -> Work:
        return Work(
            note=f"rows {span(self.shard.vocab)} of the vocabulary, {self._shape(len(self.rows(step)))}"
        )

    def attention(self, step: Step) -> Work:
        """Keys of all rows, and what those that are kept see."""
        config, d, rows, kept = self.config, self.config.head_dim, self.rows(step), self._kept(step)
        heads, kv_heads = len(self.shard.heads), len(self.shard.kv_heads)
        qkv = Gemm("qkv", len(rows), config.hidden_size, self._qkv_heads * d)
        if not kept.num_tokens:
            return Work((qkv,), "keys and values only")
        assert step.layer is not None
        num_keys = self.moves.num_fetched_tokens + rows.stop
        window = min(num_keys, config.window_of(step.layer) or num_keys)
        return Work(
            gemms=(qkv, Gemm("o", kept.num_tokens, heads * d, config.hidden_size)),
            note=f"{heads} heads over {kv_heads} KV heads, up to {window} keys",
            other_flops=4 * heads * d * int(kept.pairs_seen(window).sum()),
        )

    def mlp(self, step: Step) -> Work:
        num_tokens = self._kept(step).num_tokens
        if not num_tokens:
            return NOTHING_WANTED
        assert step.layer is not None
        if self.config.has_experts(step.layer):
            return self._experts(num_tokens)
        return Work(self._gemms_of_mlp(num_tokens, self.config.mlp_size(step.layer)))

    def reduce_norm(self, step: Step) -> Work:
        num_tokens = self._kept(step).num_tokens
        if not num_tokens:
            return NOTHING_WANTED
        if self.shard.size == 1:
            return Work(note=f"add + norm {self._shape(num_tokens)}; one rank: nothing to reduce")
        size_bytes = num_tokens * self.config.hidden_size * DTYPE_BYTES[self.dtype]
        return Work(note=f"all-reduce + add + norm {self._shape(num_tokens)}", bytes_given=size_bytes)

    def output_head(self, step: Step) -> Work:
        if not len(self._part(step).logit_rows):
            return NOTHING_WANTED
        return Work((Gemm("head", 1, self.config.hidden_size, len(self.shard.vocab)),))

    def gather(self, step: Step) -> Work:
        if self.shard.size == 1:
            return Work(note="one rank: nothing to gather")
        columns = len(self.shard.vocab)
        given = 0 if self.shard.rank == 0 else columns * LOGIT_BYTES
        return Work(note=f"(1, {columns}) of each rank, joined on rank 0", bytes_given=given)

    def fetch_weights(self, step: Step) -> Work:
        size_bytes = round(self.layer_bytes)
        return Work(note="weights from their tier, on average over the layers", bytes_moved=size_bytes)

    def prefetch_weights(self, step: Step) -> Work:
        return Work(note="the first layers of the next pass begin to come")

    def evict(self, step: Step) -> Work:
        return self._moved(step, "to")

    def fetch(self, step: Step) -> Work:
        return self._moved(step, "from")

    def store(self, step: Step) -> Work:
        return self._moved(step, "to")

    @property
    def layer_bytes(self) -> float:
        """This rank's share of the weights of a layer, on average."""
        of_layers = layers_bytes(self.config, self.shard, DTYPE_BYTES[self.dtype], self.formats)
        return of_layers / self.config.num_layers

    @property
    def format_names(self) -> list[str]:
        """The formats of weights in blocks, each once."""
        return sorted({form.name for form in self.formats.values()})

    @property
    def formats_text(self) -> str:
        return f", weights in {' and '.join(self.format_names)}" if self.formats else ""

    @property
    def weights_bytes(self) -> int:
        """This rank's share of the weights; norms, a few thousand numbers on every rank, are left out."""
        return weights_bytes(self.config, self.shard, DTYPE_BYTES[self.dtype], self.formats)

    @property
    def _qkv_heads(self) -> int:
        """Heads of q, k and v that the rank computes: its own, or where q and k are normed as wholes, all of these."""
        config, own_kv = self.config, len(self.shard.kv_heads)
        if config.qk_norm_over_heads:
            return config.num_heads + config.num_kv_heads + own_kv
        return len(self.shard.heads) + 2 * own_kv

    @property
    def kv_bytes_per_token(self) -> int:
        per_layer = 2 * len(self.shard.kv_heads) * self.config.head_dim
        return per_layer * self.config.num_layers * DTYPE_BYTES[self.dtype]

    @property
    def kv_bytes_per_block(self) -> int:
        """Of one block in one layer."""
        return BLOCK_SIZE * self.kv_bytes_per_token // self.config.num_layers

    def _moved(self, step: Step, direction: str) -> Work:
        count = self.moves.blocks_of(step.op)
        tier = "a tier" if self.moves.tier is None else self.moves.tier.name
        note = f"{count:,} block{'' if count == 1 else 's'} of {BLOCK_SIZE} tokens {direction} {tier}"
        return Work(note=note, bytes_moved=count * self.kv_bytes_per_block)

    def _part(self, step: Step) -> BatchGeometry:
        return sequence(self.num_tokens, self.moves.num_fetched_tokens).part(self.rows(step))

    def _kept(self, step: Step) -> BatchGeometry:
        """The rows that the step works on: in the last layer, those whose logits are wanted, if they are few."""
        part = self._part(step)
        return part.ending if step.layer == self.config.num_layers - 1 else part

    def _experts(self, t: int) -> Work:
        """Every expert is on every rank in part; tokens are counted as spread evenly over the experts."""
        config = self.config
        rows = -(-t * config.experts_per_token // config.num_experts)
        busy = min(config.num_experts, t * config.experts_per_token)
        router = Gemm("router", t, config.hidden_size, config.num_experts)
        note = f"{config.experts_per_token} of {config.num_experts} experts per token"
        experts = self._gemms_of_mlp(rows, config.intermediate_size, busy)
        if not config.shared_intermediate_size:
            return Work((router, *experts), note)
        shared = self._gemms_of_mlp(t, config.shared_intermediate_size)
        gate = Gemm("gate of shared", t, config.hidden_size, 1)
        return Work((router, *experts, gate, *shared), f"{note}, and one that all share")

    def _gemms_of_mlp(self, rows: int, size: int, times: int = 1) -> tuple[Gemm, Gemm]:
        hidden, columns = self.config.hidden_size, len(self.shard.columns(size))
        return (
            Gemm("gate,up", rows, hidden, 2 * columns, times),
            Gemm("down", rows, columns, hidden, times),
        )

    def _shape(self, num_tokens: int) -> str:
        return f"({num_tokens}, {self.config.hidden_size})"


def sequence(num_tokens: int, num_before: int = 0) -> BatchGeometry:
    """One sequence's last `num_tokens` tokens, behind `num_before` others, with the logits of its last."""
    alone = BatchGeometry.prefill(num_tokens)
    return replace(alone, seq_lens=alone.seq_lens + np.int32(num_before))


def weight_bytes(workloads: Sequence[Workload]) -> float:
    """The bytes of a value of a weight, on average over all ranks."""
    dense = sum(replace(workload, formats={}).weights_bytes for workload in workloads)
    held = sum(workload.weights_bytes for workload in workloads)
    return DTYPE_BYTES[workloads[0].dtype] * (held / dense)


def span(units: range) -> str:
    """`0-4` for five units from 0; `none` for no units."""
    return f"{units.start}-{units.stop - 1}" if units else "none"
