"""How the three kernels are launched.

Thread safety: one stream and one thread at a time for each `Meeting`.

Invariants:
  1. A launch allocates nothing, waits for nothing and reads nothing back: it can be captured in a CUDA graph, once the
     kernel has been compiled by an earlier launch of the same hidden size, dtype, group and weights that are there.
  2. All ranks launch as many CTAs: their number follows from the number of tokens, the group and its table of CTAs
     alone. The tag that the CTAs signal says how many, so that ranks which differ in it fail and do not wait in vain.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.cuda.multimem import multimem_kernel
from tokenweave.kernels.cuda.one_shot import one_shot_kernel
from tokenweave.kernels.cuda.peer import peer_kernel
from tokenweave.kernels.cuda.sharing import VECTOR_BYTES, VECTOR_ELEMENTS, Meeting, shard, tag_of

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

ELEMENTS_PER_THREAD = 8  # 16 bytes of a 16-bit dtype
MAX_WARPS = 32
ONE_CHUNK = 32 * MAX_WARPS * ELEMENTS_PER_THREAD  # the widest row that is held as one chunk
WIDE_WARPS = 8  # of a wider row: 255 registers a thread, so that addresses take less of them
PREFETCH_WARPS = 16  # with more, a thread has 64 registers at most, too few for a second row
PREFETCH_WORDS = 32  # registers that the ranks' parts of the next row may take
SUM_WORDS = 40  # registers that the switch's sum of the next row may take


def by_peers(
    meeting: Meeting,
    buffers: Tensor,
    offset_bytes: int,
    hidden: Tensor,
    residual: Tensor,
    norms: ResidualNorms,
) -> None:
    """Normed rows replace `hidden` (num_tokens, hidden_size), which lies `offset_bytes` into each rank's buffer.

    `residual` has all rows, or those that this rank owns.
    """
    num_tokens, hidden_size = hidden.shape
    rows = shard(num_tokens, meeting.rank, meeting.size)
    num_ctas = meeting.shared_ctas(num_tokens)
    peer_kernel[(num_ctas,)](
        buffers,
        offset_bytes,
        meeting.pads,
        meeting.epochs,
        meeting.failed,
        meeting.mailbox,
        residual,
        _kept_shift(residual, num_tokens, rows),
        *_weights(norms, hidden),
        rows.start,
        rows.stop,
        meeting.rank,
        tag_of(num_tokens, num_ctas),
        norms.eps,
        meeting.timeout_ns,
        **peer_options(hidden_size, hidden.dtype, meeting.size),
        **norm_options(norms),
    )


def by_switch(
    meeting: Meeting, multicast: int, hidden: Tensor, residual: Tensor, norms: ResidualNorms
) -> None:
    """As `by_peers`, with the rows at the address `multicast` of every rank at once."""
    num_tokens, hidden_size = hidden.shape
    rows = shard(num_tokens, meeting.rank, meeting.size)
    num_ctas = meeting.shared_ctas(num_tokens)
    multimem_kernel[(num_ctas,)](
        multicast,
        meeting.pads,
        meeting.epochs,
        meeting.failed,
        meeting.mailbox,
        residual,
        _kept_shift(residual, num_tokens, rows),
        *_weights(norms, hidden),
        rows.start,
        rows.stop,
        meeting.rank,
        tag_of(num_tokens, num_ctas),
        norms.eps,
        meeting.timeout_ns,
        **multimem_options(hidden_size, hidden.dtype, meeting.size),
        **norm_options(norms),
    )


def in_one_shot(
    meeting: Meeting,
    slots: Tensor,
    rows_per_cta: int,
    hidden: Tensor,
    residual: Tensor,
    norms: ResidualNorms,
) -> None:
    """Normed rows replace `hidden`, any tensor of at most `num_ctas * rows_per_cta` contiguous rows."""
    num_tokens, hidden_size = hidden.shape
    num_ctas = meeting.one_shot_ctas(num_tokens)
    one_shot_kernel[(num_ctas,)](
        slots,
        meeting.pads,
        meeting.epochs,
        meeting.failed,
        meeting.mailbox,
        hidden,
        residual,
        *_weights(norms, hidden),
        num_tokens,
        meeting.rank,
        tag_of(num_tokens, num_ctas),
        norms.eps,
        meeting.timeout_ns,
        **one_shot_options(hidden_size, hidden.dtype, meeting.size, meeting.num_ctas, rows_per_cta),
        **norm_options(norms),
    )


def norm_options(norms: ResidualNorms) -> dict[str, Any]:
    """Tells a kernel which weights are there; it is compiled for each combination."""
    return {"HAS_WEIGHT": norms.weight is not None, "HAS_POST": norms.post_weight is not None}


def _weights(norms: ResidualNorms, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The two weights; in place of one that is not there, and is not read, any tensor of the same dtype."""
    pair = (norms.weight, norms.post_weight)
    weight, post_weight = (hidden if weight is None else weight for weight in pair)
    return weight, post_weight


def _kept_shift(residual: Tensor, num_tokens: int, rows: range) -> int:
    """Returns what is added to a row's number for its place in `residual`."""
    return 0 if residual.shape[0] == num_tokens else -rows.start


def peer_options(hidden_size: int, dtype: torch.dtype, size: int) -> dict[str, Any]:
    options = _row_options(hidden_size, dtype, size)
    per_thread = options["CHUNK"] // (32 * options["num_warps"])
    words = size * per_thread * dtype.itemsize // 4
    fits = options["num_warps"] <= PREFETCH_WARPS and words <= PREFETCH_WORDS
    return {**options, "PREFETCHES": options["CHUNKS"] == 1 and fits}


def one_shot_options(
    hidden_size: int, dtype: torch.dtype, size: int, num_ctas: int, rows_per_cta: int
) -> dict[str, Any]:
    return {**_row_options(hidden_size, dtype, size), "NUM_CTAS": num_ctas, "ROWS": rows_per_cta}


def multimem_options(hidden_size: int, dtype: torch.dtype, size: int) -> dict[str, Any]:
    options = _row_options(hidden_size, dtype, size, VECTOR_ELEMENTS)
    # Of a chunk. Were there fewer than threads, two would write one vector.
    vectors = max(options.pop("CHUNK") // VECTOR_ELEMENTS, 32 * options["num_warps"])
    words = options["CHUNKS"] * VECTOR_ELEMENTS * dtype.itemsize // 4
    return {**options, "ITEM_BYTES": dtype.itemsize, "VECTORS": vectors, "PREFETCHES": words <= SUM_WORDS}


def _row_options(
    hidden_size: int, dtype: torch.dtype, size: int, wide_elements: int | None = None
) -> dict[str, Any]:
    """A thread has eight neighbouring columns of a row of one chunk, as far as there are as many.

    Of each chunk of a wider row it has `wide_elements`: unless given, as many as one access of the widest kind loads.
    """
    if hidden_size <= ONE_CHUNK:
        chunk = triton.next_power_of_2(hidden_size)
        num_warps = max(chunk // (32 * ELEMENTS_PER_THREAD), 1)
    else:
        elements = wide_elements or VECTOR_BYTES // dtype.itemsize
        chunk, num_warps = 32 * WIDE_WARPS * elements, WIDE_WARPS
    return {
        "DTYPE": TRITON_DTYPES[dtype],
        "HIDDEN": hidden_size,
        "CHUNK": chunk,
        "CHUNKS": -(-hidden_size // chunk),
        "SIZE": size,
        "PEERS": triton.next_power_of_2(size),
        "num_warps": num_warps,
        "enable_fp_fusion": True,
    }
