"""ForwardBatch: what one forward pass over many sequences is told, as plain integers.

Built by the scheduler on rank 0 and sent as bytes to the other ranks, so that all of them run the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


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
    logit_rows: Tensor  # (num_logits,)  token rows whose logits are wanted

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]

    def to_bytes(self) -> bytes:
        """One message for the other ranks: the seven lengths, then the seven arrays, as little-endian int32."""
        arrays = [getattr(self, field.name).numpy() for field in fields(self)]
        lengths = np.array([array.size for array in arrays], dtype=np.int32)
        return b"".join([lengths.tobytes(), *(array.tobytes() for array in arrays)])

    @classmethod
    def from_bytes(cls, data: bytes) -> ForwardBatch:
        """Read back what `to_bytes` wrote."""
        flat = torch.frombuffer(bytearray(data), dtype=torch.int32)
        count = len(fields(cls))
        parts = torch.split(flat[count:], flat[:count].tolist())
        batch = dict(zip((field.name for field in fields(cls)), parts, strict=True))
        batch["block_tables"] = batch["block_tables"].reshape(batch["seq_lens"].shape[0], -1)
        return cls(**batch)
