"""The native sampler: rows shared out among a pool's workers, each of them as the reference has it."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, c_char, c_int32, create_string_buffer
from struct import Struct
from struct import error as StructError

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.native import ThreadPool, check_status
from tokenweave.sampling.row import SampledRow, SamplingRow

# tw_sampling and tw_sampled of tokenweave.h. Packed in one go, a row costs half of what arrays of records do.
SAMPLING = Struct("dQQQqqqfffffi")
SAMPLED = Struct("dqfi")


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
    given = b"".join([_packed(row, logits.shape[1]) for row in rows])
    sampled = create_string_buffer(len(rows) * SAMPLED.size)
    max_logprobs = min(max([row.logprobs or 0 for row in rows], default=0), logits.shape[1])
    likeliest = (c_int32 * (len(rows) * max_logprobs))()
    status = pool.library.tw_sample(
        pool.handle, logits.data_ptr(), max(logits.stride(0), logits.shape[1]), len(rows), logits.shape[1],
        given, sampled, likeliest, max_logprobs,
    )  # fmt: skip
    check_status(status, "sample")
    return _unpacked(rows, sampled, likeliest, max_logprobs)


def _packed(row: SamplingRow, vocab_size: int) -> bytes:
    tokens = row.tokens.ctypes.data if row.has_penalties else 0
    logprobs = -1 if row.logprobs is None else min(row.logprobs, vocab_size)
    try:
        return SAMPLING.pack(
            row.top_p, row.seed, row.output_index, tokens, len(row.tokens), row.num_prompt, row.top_k,
            row.temperature, row.min_p, row.repetition_penalty, row.frequency_penalty, row.presence_penalty, logprobs,
        )  # fmt: skip
    except StructError as error:
        raise KernelError(
            f"sample: got {row._replace(tokens=row.tokens[:0])}, expected numbers in range: {error}"
        ) from error


def _unpacked(
    rows: Sequence[SamplingRow], sampled: Array[c_char], likeliest: Array[c_int32], max_logprobs: int
) -> list[SampledRow]:
    found = []
    for place, (row, (total, rank, largest, token)) in enumerate(
        zip(rows, SAMPLED.iter_unpack(sampled), strict=True)
    ):
        if token < 0 or row.logprobs is None:
            found.append(SampledRow(None if token < 0 else token, largest))
        else:
            first = place * max_logprobs
            best = likeliest[first : first + min(row.logprobs, max_logprobs)]
            found.append(SampledRow(token, largest, total, rank, tuple(best)))
    return found
