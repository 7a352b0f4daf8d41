"""Floors: what no call can be faster than, from the rates of a copy and of a product, which are measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.device import Device
from benchmarks.gpu.machine import PRODUCT, rate_of_copy, rate_of_product

COPY_BYTES = 1 << 30
DRY_BYTES, DRY_SIZE = 1 << 16, 64
ROUNDS = 5


@dataclass(frozen=True)
class Floors:
    """The rates that nothing here can exceed."""

    bytes_per_s: float
    flops_per_s: float

    @classmethod
    def measured(cls, device: Device, is_dry_run: bool) -> Floors:
        size_bytes, size = (DRY_BYTES, DRY_SIZE) if is_dry_run else (COPY_BYTES, PRODUCT)
        rounds = 1 if is_dry_run else ROUNDS
        copied, product = rate_of_copy(device, size_bytes, rounds), rate_of_product(device, size, rounds)
        return cls(copied.median, product.median)

    def of(self, num_bytes: float, flops: float) -> tuple[float, str]:
        """The least microseconds, and what bounds them."""
        return max(
            (1e6 * num_bytes / self.bytes_per_s, "memory"), (1e6 * flops / self.flops_per_s, "arithmetic")
        )
