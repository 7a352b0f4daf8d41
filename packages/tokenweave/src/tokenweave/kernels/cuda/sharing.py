"""How ranks share the work of a fused call, and the state by which their kernels meet. Needs no triton.

Thread safety: one stream and one thread at a time for each `Meeting`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tokenweave.errors import CommunicatorError

VECTOR_ELEMENTS = 8  # of the switch's path: a row is made of whole ones
VECTOR_BYTES = 16  # an access of the widest kind; rows in symmetric memory begin at a multiple
SAID, ABORT = 0, 1  # the words of a mailbox: what the kernels of this rank say; the host wants them to end
WORDS_PER_CTA = 2  # of each peer's signals, one for every other meeting

# A tag is 28 bits, so that a mailbox's word has room for two of them beside a rank.
CTA_BITS, TAG_BITS, RANK_BITS = 8, 28, 7
MAX_CTAS = 2**CTA_BITS - 1
MAX_TOKENS = 2 ** (TAG_BITS - CTA_BITS) - 1


@dataclass(frozen=True)
class CtaTable:
    """How many CTAs share out the rows of a call, by its number of tokens.

    `rows` holds pairs (num_tokens, num_ctas), the tokens rising. A call takes the CTAs of the first pair that has at
    least as many tokens, and those of the last pair if none has.
    """

    rows: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        tokens = [num_tokens for num_tokens, _ in self.rows]
        counts = [num_ctas for _, num_ctas in self.rows]
        if not self.rows or tokens != sorted(set(tokens)) or not all(1 <= n <= MAX_CTAS for n in counts):
            raise CommunicatorError(
                f"got a table of CTAs {self.rows}; expected pairs (num_tokens, num_ctas), the tokens rising, of 1 to "
                f"{MAX_CTAS} CTAs"
            )

    @classmethod
    def always(cls, num_ctas: int) -> CtaTable:
        """The same number for every call."""
        return cls(((0, num_ctas),))

    @property
    def most(self) -> int:
        return max(num_ctas for _, num_ctas in self.rows)

    def of(self, num_tokens: int) -> int:
        """The CTAs of a call of `num_tokens`."""
        at = bisect_left(self.rows, num_tokens, key=lambda row: row[0])
        return self.rows[min(at, len(self.rows) - 1)][1]


@dataclass(frozen=True)
class Meeting:
    """The memory in which a kernel meets its namesakes on the other ranks; see `barrier`."""

    rank: int
    size: int
    num_ctas: int  # at most; there are counters for as many
    pads: Tensor  # (size,) int64: where this rank reaches each rank's counters
    epochs: Tensor  # (num_ctas,) int32 of the device: how many meetings each CTA of this rank has left
    failed: (
        Tensor  # (1,) int32 of the device: one plus the CTA whose wait was the first that ended in vain, or 0
    )
    mailbox: Tensor  # (2,) int64 in host memory that the device reaches
    timeout_ns: int
    table: CtaTable  # of the paths that share rows out; none of its numbers above `num_ctas`

    def shared_ctas(self, num_tokens: int) -> int:
        """The CTAs that share out `num_tokens` rows: on every rank as many, for each meets its namesakes."""
        return min(self.table.of(num_tokens), -(-num_tokens // self.size))

    def one_shot_ctas(self, num_tokens: int) -> int:
        """The CTAs of a one-shot call, whatever the table says: a row must be the same CTA's in every call."""
        return min(self.num_ctas, num_tokens)


class Said(NamedTuple):
    """Why a kernel of this rank ended early."""

    rank: int  # the one that it could not meet
    came: int  # the tag with which that rank came instead; 0: it did not come
    called: int  # this rank's own tag

    @classmethod
    def of(cls, word: int) -> Said | None:
        """Reads a mailbox's word; None for the zero that it says until a kernel has failed."""
        if word == 0:
            return None
        rank = (word & 2**RANK_BITS - 1) - 1
        return cls(rank, word >> RANK_BITS & 2**TAG_BITS - 1, word >> RANK_BITS + TAG_BITS)


def tag_of(num_tokens: int, num_ctas: int) -> int:
    """The tag of a call: what every rank signals, so that ranks which call different things notice. Never zero."""
    return num_tokens << CTA_BITS | num_ctas


def describe(tag: int) -> str:
    """The call of a tag, in words."""
    return f"all_reduce_rms_norm of {tag >> CTA_BITS} tokens in {tag & MAX_CTAS} CTAs"


def shard(num_tokens: int, rank: int, size: int) -> range:
    """The rows that `rank` owns where rows are shared out: neighbours, at most one more than any other rank's."""
    return range(rank * num_tokens // size, (rank + 1) * num_tokens // size)


def pads_bytes(size: int, num_ctas: int) -> int:
    """Returns the bytes of symmetric memory that the counters need: int32 (num_ctas, WORDS_PER_CTA, size)."""
    return num_ctas * WORDS_PER_CTA * size * 4


def slots_bytes(size: int, num_ctas: int, rows_per_cta: int, row_bytes: int) -> int:
    """Returns the bytes of symmetric memory that the one-shot path needs."""
    return 2 * num_ctas * size * rows_per_cta * row_bytes
