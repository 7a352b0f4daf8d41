"""How ranks share the work of a fused call, and the state by which their kernels meet. Needs no triton.

Thread safety: one stream and one thread at a time for each `Meeting`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

VECTOR_ELEMENTS = 8  # of the switch's path: a row is made of whole ones
VECTOR_BYTES = 16  # an access of the widest kind; rows in symmetric memory begin at a multiple
FAILED_RANK, ABORT = (
    0,
    1,
)  # the words of a mailbox: one plus the rank that did not come; the host wants the kernels to end


@dataclass(frozen=True)
class Meeting:
    """The memory in which a kernel meets its namesakes on the other ranks; see `barrier`."""

    rank: int
    size: int
    num_ctas: int  # at most; there are counters for as many
    pads: Tensor  # (size,) int64: where this rank reaches each rank's counters
    failed: Tensor  # (1,) int32 of the device: whether a wait of this rank has ended without its peer
    mailbox: Tensor  # (2,) int32 in host memory that the device reaches
    timeout_ns: int

    def shared_ctas(self, num_tokens: int) -> int:
        """The CTAs that share out `num_tokens` rows: on every rank as many, for each meets its namesakes."""
        return min(self.num_ctas, -(-num_tokens // self.size))


def shard(num_tokens: int, rank: int, size: int) -> range:
    """The rows that `rank` owns where rows are shared out: neighbours, at most one more than any other rank's."""
    return range(rank * num_tokens // size, (rank + 1) * num_tokens // size)


def slots_bytes(size: int, num_ctas: int, rows_per_cta: int, row_bytes: int) -> int:
    """Returns the bytes of symmetric memory that the one-shot path needs."""
    return 2 * num_ctas * size * rows_per_cta * row_bytes
