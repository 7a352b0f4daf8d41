"""ForwardBatch: what one forward pass over many sequences is told, as plain integers.

Built by the scheduler on rank 0 and sent as bytes to the other ranks, so that all of them run the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from tokenweave.kernels import blocks_for


@dataclass(frozen=True)
class ForwardBatch:
    """The new tokens of every scheduled sequence, one after another. All tensors are int32 on the CPU.

    Sequence `s` owns the token rows `query_start[s]:query_start[s + 1]`; after the pass its KV cache holds
    `seq_lens[s]` tokens, of which those rows are the last.
    """

    token_ids: Tensor  # (num_tokens,)
    positions: Tensor  # (num_tokens,)
    slots: Tensor  # (num_tokens,)  where K and V of each token go: block * 16 + offset
    query_start: Tensor  # (num_seqs + 1,)
    seq_lens: Tensor  # (num_seqs,)  keys each sequence can see after this pass
    block_tables: Tensor  # (num_seqs, max_blocks)  rows padded with block 0
    logit_rows: Tensor  # (num_logits,)  token rows whose logits are wanted, ascending
    prompt_lens: Tensor  # (num_seqs,)  tokens of each sequence's prompt, computed or not
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
        starts, ends = self.query_start[:-1], self.query_start[1:]
        inside = (ends > rows.start) & (starts < rows.stop)
        first, last = starts[inside].clamp(min=rows.start), ends[inside].clamp(max=rows.stop)
        wanted = (self.logit_rows >= rows.start) & (self.logit_rows < rows.stop)
        return ForwardBatch(
            token_ids=self.token_ids[rows.start : rows.stop],
            positions=self.positions[rows.start : rows.stop],
            slots=self.slots[rows.start : rows.stop],
            query_start=torch.cat([first, last[-1:]]) - rows.start,
            seq_lens=self.seq_lens[inside] - (ends[inside] - last),
            block_tables=self.block_tables[inside],
            logit_rows=self.logit_rows[wanted] - rows.start,
            prompt_lens=self.prompt_lens[inside],
        )

    def single_tokens(self, rows: Tensor) -> ForwardBatch:
        """The tokens of `rows`, ascending, each as a sequence of its own that ends with it. All logits are wanted."""
        owner = torch.searchsorted(self.query_start[1:], rows, right=True)
        behind = self.query_start[1:][owner] - 1 - rows  # tokens of the same sequence that come after the row
        count = torch.arange(len(rows) + 1, dtype=torch.int32)
        return ForwardBatch(
            token_ids=self.token_ids[rows],
            positions=self.positions[rows],
            slots=self.slots[rows],
            query_start=count,
            seq_lens=self.seq_lens[owner] - behind,
            block_tables=self.block_tables[owner],
            logit_rows=count[:-1],
            prompt_lens=self.prompt_lens[owner],
        )

    def to_bytes(self) -> bytes:
        """One message for the other ranks: the split (0: none), the eight lengths, the eight arrays, as int32."""
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
        return cls(**arrays, split=split or None)


_ARRAYS = tuple(field.name for field in fields(ForwardBatch) if field.name != "split")
