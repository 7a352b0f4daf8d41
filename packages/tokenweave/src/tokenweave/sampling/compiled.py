"""The native sampler: rows shared out among a pool's workers, each of them as the reference has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.native import ThreadPool, check_status
from tokenweave.sampling.row import SampledRow, SamplingRow

# tw_sampling and tw_sampled of tokenweave.h.
SAMPLING = np.dtype(
    [
        ("top_p", np.float64), ("seed", np.uint64), ("index", np.uint64), ("tokens", np.uint64),
        ("num_tokens", np.int64), ("num_prompt", np.int64), ("top_k", np.int64), ("temperature", np.float32),
        ("min_p", np.float32), ("repetition_penalty", np.float32), ("frequency_penalty", np.float32),
        ("presence_penalty", np.float32), ("logprobs", np.int32),
    ],
    align=True,
)  # fmt: skip
SAMPLED = np.dtype(
    [("total", np.float64), ("rank", np.int64), ("largest", np.float32), ("token", np.int32)], align=True
)


def native_sample(pool: ThreadPool, logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledRow]:
    """Returns what `reference_sample` returns. Raises KernelError for logits that are no float32 matrix of `rows`."""
    if (
        logits.dtype != torch.float32
        or logits.dim() != 2
        or logits.shape[0] != len(rows)
        or not logits.shape[1]
    ):
        raise KernelError(
            f"sample: logits are {logits.dtype} of shape {tuple(logits.shape)}, expected float32 of "
            f"({len(rows)}, vocab_size)"
        )
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    given = np.array([_packed(row, logits.shape[1]) for row in rows], dtype=SAMPLING)
    sampled = np.empty(len(rows), dtype=SAMPLED)
    max_logprobs = min(max((row.logprobs or 0 for row in rows), default=0), logits.shape[1])
    likeliest = np.empty((len(rows), max_logprobs), dtype=np.int32)
    status = pool.library.tw_sample(
        pool.handle, logits.data_ptr(), max(logits.stride(0), logits.shape[1]), len(rows), logits.shape[1],
        given.ctypes.data, sampled.ctypes.data, likeliest.ctypes.data, max_logprobs,
    )  # fmt: skip
    check_status(status, "sample")
    return _unpacked(rows, sampled, likeliest)


def _packed(row: SamplingRow, vocab_size: int) -> tuple[float, ...]:
    tokens = row.tokens.ctypes.data if row.has_penalties else 0
    logprobs = -1 if row.logprobs is None else min(row.logprobs, vocab_size)
    return (
        row.top_p, row.seed, row.output_index, tokens, len(row.tokens), row.num_prompt, row.top_k, row.temperature,
        row.min_p, row.repetition_penalty, row.frequency_penalty, row.presence_penalty, logprobs,
    )  # fmt: skip


def _unpacked(
    rows: Sequence[SamplingRow], sampled: npt.NDArray[np.void], likeliest: npt.NDArray[np.int32]
) -> list[SampledRow]:
    found = []
    for row, (total, rank, largest, token), best in zip(rows, sampled.tolist(), likeliest, strict=True):
        if token < 0 or row.logprobs is None:
            found.append(SampledRow(None if token < 0 else token, largest))
        else:
            found.append(SampledRow(token, largest, total, rank, tuple(best[: row.logprobs].tolist())))
    return found
