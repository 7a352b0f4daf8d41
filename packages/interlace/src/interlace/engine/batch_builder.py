"""build_batch: turns the scheduler's choice into the flat arrays that a forward pass reads."""

from __future__ import annotations

import numpy as np
import torch

from interlace.engine.cache.layout import padded_tables, token_slots
from interlace.engine.scheduler import Scheduled
from interlace.models.batch import ForwardBatch


def build_batch(scheduled: list[Scheduled]) -> ForwardBatch:
    """One row per new token, sequence after sequence; logits for the last row of each that yields a token."""
    sequences = [item.sequence for item in scheduled]
    num_new = np.array([item.num_new for item in scheduled], dtype=np.int32)
    starts = np.array([sequence.num_computed for sequence in sequences], dtype=np.int32)
    query_start = np.zeros(len(scheduled) + 1, dtype=np.int32)
    np.cumsum(num_new, out=query_start[1:])
    seq_lens = starts + num_new

    positions = np.arange(query_start[-1], dtype=np.int32) - np.repeat(query_start[:-1] - starts, num_new)
    tables = padded_tables([sequence.table for sequence in sequences], seq_lens)
    tokens = [s.tokens[s.num_computed : s.num_computed + n] for s, n in scheduled]
    yields = np.array([item.yields_token for item in scheduled], dtype=bool)
    return ForwardBatch(
        token_ids=torch.from_numpy(np.concatenate(tokens)),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(token_slots(tables, num_new, positions)),
        query_start=torch.from_numpy(query_start),
        seq_lens=torch.from_numpy(seq_lens),
        block_tables=torch.from_numpy(tables),
        logit_rows=torch.from_numpy((query_start[1:] - 1)[yields]),
        prompt_lens=torch.tensor([sequence.num_prompt for sequence in sequences], dtype=torch.int32),
    )
