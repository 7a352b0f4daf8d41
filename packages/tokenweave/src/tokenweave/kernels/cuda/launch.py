"""How the three kernels are launched.

Thread safety: one stream and one thread at a time for each `Meeting`.

Invariants:
  1. A launch allocates nothing, waits for nothing and reads nothing back: it can be captured in a CUDA graph, once the
     kernel has been compiled by an earlier launch of the same hidden size, dtype, group and weights that are there.
  2. All ranks launch as many CTAs: their number follows from the number of tokens and the group alone.
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
from tokenweave.kernels.cuda.sharing import VECTOR_ELEMENTS, Meeting, shard

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

ELEMENTS_PER_THREAD = 8  # 16 bytes of a 16-bit dtype
MAX_WARPS = 32
PREFETCH_WARPS = 16  # with more, a thread has 64 registers at most, too few for a second row
PREFETCH_WORDS = 32  # registers that the ranks' parts of the next row may take


def by_peers(
    meeting: Meeting,
    buffers: Tensor,
    offset_bytes: int,
    hidden: Tensor,
    residual: Tensor,
    norms: ResidualNorms,
) -> None:
    """Normed rows replace `hidden` (num_tokens, hidden_size), which lies `offset_bytes` into each rank's buffer."""
    num_tokens, hidden_size = hidden.shape
    rows = shard(num_tokens, meeting.rank, meeting.size)
    peer_kernel[(meeting.shared_ctas(num_tokens),)](
        buffers,
        offset_bytes,
        meeting.pads,
        meeting.failed,
        meeting.mailbox,
        residual,
        *_weights(norms, hidden),
        rows.start,
        rows.stop,
        meeting.rank,
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
    multimem_kernel[(meeting.shared_ctas(num_tokens),)](
        multicast,
        meeting.pads,
        meeting.failed,
        meeting.mailbox,
        residual,
        *_weights(norms, hidden),
        rows.start,
        rows.stop,
        meeting.rank,
        norms.eps,
        meeting.timeout_ns,
        **multimem_options(hidden_size, hidden.dtype, meeting.size),
        **norm_options(norms),
    )


def in_one_shot(
    meeting: Meeting,
    slots: Tensor,
    epochs: Tensor,
    rows_per_cta: int,
    hidden: Tensor,
    residual: Tensor,
    norms: ResidualNorms,
) -> None:
    """Normed rows replace `hidden`, any tensor of at most `num_ctas * rows_per_cta` contiguous rows."""
    num_tokens, hidden_size = hidden.shape
    one_shot_kernel[(min(meeting.num_ctas, num_tokens),)](
        slots,
        epochs,
        meeting.pads,
        meeting.failed,
        meeting.mailbox,
        hidden,
        residual,
        *_weights(norms, hidden),
        num_tokens,
        meeting.rank,
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


def peer_options(hidden_size: int, dtype: torch.dtype, size: int) -> dict[str, Any]:
    options = _row_options(hidden_size, dtype, size)
    per_thread = options["BLOCK"] // (32 * options["num_warps"])
    words = size * per_thread * dtype.itemsize // 4
    fits = options["num_warps"] <= PREFETCH_WARPS and words <= PREFETCH_WORDS
    return {**options, "PREFETCHES": fits}


def one_shot_options(
    hidden_size: int, dtype: torch.dtype, size: int, num_ctas: int, rows_per_cta: int
) -> dict[str, Any]:
    return {**_row_options(hidden_size, dtype, size), "NUM_CTAS": num_ctas, "ROWS": rows_per_cta}


def multimem_options(hidden_size: int, dtype: torch.dtype, size: int) -> dict[str, Any]:
    vectors = triton.next_power_of_2(hidden_size // VECTOR_ELEMENTS)
    warps = min(max(vectors // 32, 1), MAX_WARPS)
    return {
        "DTYPE": TRITON_DTYPES[dtype],
        "ITEM_BYTES": dtype.itemsize,
        "HIDDEN": hidden_size,
        "VECTORS": max(vectors, 32 * warps),  # were there fewer, two threads would write one vector
        "SIZE": size,
        "PEERS": triton.next_power_of_2(size),
        "num_warps": warps,
        "enable_fp_fusion": True,
    }


def _row_options(hidden_size: int, dtype: torch.dtype, size: int) -> dict[str, Any]:
    block = triton.next_power_of_2(hidden_size)
    return {
        "DTYPE": TRITON_DTYPES[dtype],
        "HIDDEN": hidden_size,
        "BLOCK": block,
        "SIZE": size,
        "PEERS": triton.next_power_of_2(size),
        "num_warps": min(max(block // (32 * ELEMENTS_PER_THREAD), 1), MAX_WARPS),
        "enable_fp_fusion": True,
    }
