"""ForwardBatch: what one forward pass over many sequences is told, as plain integers.

Built by the scheduler on rank 0 and sent as bytes to the other ranks, so that all of them run the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from interlace.models.moves import NO_MOVES, moves_of
from tokenweave.geometry import BatchGeometry
from tokenweave.kernels import blocks_for
from tokenweave.plan import Plan, plan_forward


@dataclass(frozen=True)
class ForwardBatch:
    """The new tokens of every scheduled sequence, one after another. All tensors are int32 on the CPU.

    Sequence `s` owns the token rows `query_start[s]:query_start[s + 1]`; after the pass its KV cache holds
    `seq_lens[s]` tokens, of which those rows are the last.
    """

    token_ids: (
        Tensor  # (num_tokens,)  -1 - row for the token that the last pass sampled in that row: see FedTokens
    )
    positions: Tensor  # (num_tokens,)
    slots: Tensor  # (num_tokens,)  where K and V of each token go: block * 16 + offset
    query_start: Tensor  # (num_seqs + 1,)
    seq_lens: Tensor  # (num_seqs,)  keys each sequence can see after this pass
    block_tables: Tensor  # (num_seqs, max_blocks)  rows padded with block 0
    logit_rows: Tensor  # (num_logits,)  token rows whose logits are wanted, ascending
    prompt_lens: Tensor  # (num_seqs,)  tokens of each sequence's prompt, computed or not
    moves: Tensor = NO_MOVES  # (num_moves, 5)  blocks that the pass moves between tiers: see Move
    split: int | None = None  # a row that cuts the batch in two parts, to be woven; None: one part

    @classmethod
    def prefill(cls, num_tokens: int, vocab_size: int) -> ForwardBatch:
        """One sequence from position 0, in the first blocks, with the logits of its last token: for measuring."""
        rows = torch.arange(num_tokens, dtype=torch.int32)
        ends = torch.tensor([0, num_tokens], dtype=torch.int32)
        return cls(
            token_ids=(rows * 7919) % vocab_size,
            positions=rows,
            slots=rows,
            query_start=ends,
            seq_lens=ends[1:],
            block_tables=torch.arange(blocks_for(num_tokens), dtype=torch.int32)[None],
            logit_rows=ends[1:] - 1,
            prompt_lens=ends[1:],
        )

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]

    @property
    def is_fed(self) -> bool:
        """Whether it names tokens that the last pass sampled."""
        return bool((self.token_ids.numpy() < 0).any())

    def plan(self, num_layers: int, *, fetches_weights: bool = False) -> Plan:
        """The plan of its pass through a model of so many layers, whose weights may have to be fetched."""
        moves = replace(moves_of(self.moves), fetches_weights=fetches_weights)
        return plan_forward(num_layers, self.num_tokens, self.split, moves)

    @cached_property
    def geometry(self) -> BatchGeometry:
        """Whose the rows are, in memory that the tensors share."""
        return BatchGeometry(self.query_start.numpy(), self.seq_lens.numpy(), self.logit_rows.numpy())

    def text_lengths(self) -> Tensor:
        """(num_tokens,)  how much text had been read for each token: its whole prompt, or all up to itself."""
        prompts = self.prompt_lens.repeat_interleave(self.query_start.diff())
        return torch.maximum(prompts, self.positions + 1)

    def part(self, rows: range) -> ForwardBatch:
        """The tokens of `rows` alone, a non-empty range. A sequence that goes on behind `rows` has fewer keys there.

        `logit_rows` counts from the part's first row.
        """
        if rows == range(self.num_tokens):
            return self
        return self._cut(slice(rows.start, rows.stop), self.geometry.part(rows))

    @cached_property
    def ending(self) -> ForwardBatch:
        """The tokens that are left in the last layer, behind its keys; `BatchGeometry.ending` says which."""
        ending = self.geometry.ending
        return self if ending is self.geometry else self._cut(self.logit_rows, ending)

    def _cut(self, rows: slice | Tensor, geometry: BatchGeometry) -> ForwardBatch:
        """The tokens of `rows`, of which `geometry` tells the rest."""
        origin = torch.from_numpy(geometry.origin)
        return ForwardBatch(
            token_ids=self.token_ids[rows],
            positions=self.positions[rows],
            slots=self.slots[rows],
            query_start=torch.from_numpy(geometry.query_start),
            seq_lens=torch.from_numpy(geometry.seq_lens),
            block_tables=self.block_tables[origin],
            logit_rows=torch.from_numpy(geometry.logit_rows),
            prompt_lens=self.prompt_lens[origin],
        )

    def to_bytes(self) -> bytes:
        """One message for the other ranks: the split (0: none), the lengths of the arrays, the arrays, as int32."""
        arrays = [getattr(self, name).numpy() for name in _ARRAYS]
        head = np.array([self.split or 0, *(array.size for array in arrays)], dtype=np.int32)
        return b"".join([head.tobytes(), *(array.tobytes() for array in arrays)])

    @classmethod
    def from_bytes(cls, data: bytes) -> ForwardBatch:
        """Read back what `to_bytes` wrote."""
        flat = torch.frombuffer(bytearray(data), dtype=torch.int32)
        split, *lengths = flat[: len(_ARRAYS) + 1].tolist()
        parts = torch.split(flat[len(_ARRAYS) + 1 :], lengths)
        arrays = dict(zip(_ARRAYS, parts, strict=True))
        arrays["block_tables"] = arrays["block_tables"].reshape(arrays["seq_lens"].shape[0], -1)
        arrays["moves"] = arrays["moves"].reshape(-1, NO_MOVES.shape[1])
        return cls(**arrays, split=split or None)


_ARRAYS = tuple(field.name for field in fields(ForwardBatch) if field.name != "split")
