"""Timing on devices that needs no table: how long a group's reductions take, and what one device can reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenweave.cost import Peaks
from tokenweave.curves import Curve
from tokenweave.kernels import ResidualNorms

if TYPE_CHECKING:
    from tokenweave.communicators import Communicator
    from tokenweave.stage_clock import StageClock

ROUNDS = 3
REPEATS = 4
FEWEST_TOKENS = 16
STEP = 4  # from each number of tokens to the next
PRODUCT = 4096  # rows, columns and depth of the product that a device's arithmetic is measured with
COPIED_BYTES = 128 << 20  # more than a cache holds


def measure_reductions(
    communicator: Communicator, clock: StageClock, hidden_size: int, dtype: torch.dtype, max_tokens: int
) -> Curve:
    """Times `all_reduce_rms_norm` at several numbers of tokens, up to `max_tokens`. A collective call.

    Each rank has its own times: the best of some rounds, as what disturbs a measurement only ever adds to it.
    """
    device = communicator.kernels.device
    norms = ResidualNorms(torch.ones(hidden_size, dtype=dtype, device=device), 1e-5)

    def seconds(num_tokens: int) -> float:
        partial = communicator.new_partial(num_tokens, hidden_size, dtype).zero_()
        residual = communicator.new_residual(num_tokens, hidden_size, dtype)

        def reduce() -> None:
            communicator.all_reduce_rms_norm(partial, residual, norms)

        return min(clock.seconds(reduce, REPEATS) for _ in range(ROUNDS))

    counts = reduced_tokens(max_tokens)
    return Curve(counts, tuple(seconds(count) for count in counts))


def reduced_tokens(max_tokens: int) -> tuple[int, ...]:
    """The numbers of tokens at which reductions are timed."""
    found, at = {max_tokens}, FEWEST_TOKENS
    while at < max_tokens:
        found.add(at)
        at *= STEP
    return tuple(sorted(found))


def measure_peaks(clock: StageClock, device: torch.device, dtype: torch.dtype) -> Peaks:
    """Times a large product and a copy. It takes some milliseconds, and 400 MB of the device for a while."""
    left, right = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s, copy_s = (
        min(clock.seconds(call, REPEATS) for _ in range(ROUNDS))
        for call in (lambda: torch.mm(left, right, out=product), lambda: target.copy_(source))
    )
    return Peaks(2 * PRODUCT**3 / product_s, 2 * COPIED_BYTES / copy_s)
