"""What exchanges between ranks move, in bytes: for whoever carries them over a link, and for whoever prices them."""

from __future__ import annotations

from dataclasses import dataclass

ONE_EXCHANGE_BYTES = 64 * 1024  # a sum of less is one exchange of whole tensors: half the latency


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one rank sends and receives in one exchange between all ranks."""

    sent_bytes: int
    received_bytes: int


def exchanges_of_sum(size: int, size_bytes: int) -> tuple[Traffic, ...]:
    """What a sum of tensors of `size_bytes` over `size` ranks moves: all at once, or reduce-scatter and all-gather."""
    if size_bytes < ONE_EXCHANGE_BYTES:
        return (Traffic((size - 1) * size_bytes, (size - 1) * size_bytes),)
    share_bytes = -(-size_bytes * (size - 1) // size)
    return (Traffic(share_bytes, share_bytes),) * 2


def exchanges_of_rows(size: int, num_rows: int, own_rows: int, row_bytes: int) -> tuple[Traffic, Traffic]:
    """What the reduce-scatter and the all-gather of `num_rows` move on a rank that owns `own_rows` of them."""
    others, own = (num_rows - own_rows) * row_bytes, (size - 1) * own_rows * row_bytes
    return Traffic(others, own), Traffic(own, others)
