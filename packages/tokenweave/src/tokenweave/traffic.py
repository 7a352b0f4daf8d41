"""The bytes that exchanges between ranks move: for whoever carries them over a link, and for whoever prices them."""

from __future__ import annotations

from dataclasses import dataclass

ONE_EXCHANGE_BYTES = 64 * 1024  # a sum of less is one exchange of whole tensors: half the latency


@dataclass(frozen=True, slots=True)
class Traffic:
    """The bytes that one rank sends and receives in one exchange between all ranks."""

    sent_bytes: int
    received_bytes: int


def exchanges_of_sum(size: int, size_bytes: int) -> tuple[Traffic, ...]:
    """Returns the traffic of a sum of tensors of `size_bytes` over `size` ranks: all at once, or in two exchanges."""
    if size_bytes < ONE_EXCHANGE_BYTES:
        return (Traffic((size - 1) * size_bytes, (size - 1) * size_bytes),)
    share_bytes = -(-size_bytes * (size - 1) // size)
    return (Traffic(share_bytes, share_bytes),) * 2


def exchanges_of_rows(size: int, num_rows: int, own_rows: int, row_bytes: int) -> tuple[Traffic, Traffic]:
    """Returns the traffic of reduce-scatter and all-gather of `num_rows` on a rank that owns `own_rows` of them."""
    others, own = (num_rows - own_rows) * row_bytes, (size - 1) * own_rows * row_bytes
    return Traffic(others, own), Traffic(own, others)
