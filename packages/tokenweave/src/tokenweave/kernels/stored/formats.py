"""The block formats of GGUF files that kernels multiply as they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantFormat:
    """One block format: some values that follow each other along a row, as small codes with their scales.

    Bytes of zero are values of zero in each of them.
    """

    name: str
    code: int  # tw_stored_format
    block_values: int
    block_bytes: int
    scale_values: int  # values of one scale
    has_minimum: bool  # whether a value is scale * code + minimum

    def row_bytes(self, num_values: int) -> int:
        """Bytes of the whole blocks that hold `num_values` values from the first value of a block on."""
        return -(-num_values // self.block_values) * self.block_bytes

    @property
    def bits_per_value(self) -> float:
        return 8 * self.block_bytes / self.block_values


FORMATS = {
    format.name: format
    for format in (
        QuantFormat("q4_0", 0, 32, 18, 32, False),
        QuantFormat("q4_1", 1, 32, 20, 32, True),
        QuantFormat("q8_0", 2, 32, 34, 32, False),
        QuantFormat("q4_k", 3, 256, 144, 32, True),
        QuantFormat("q5_k", 4, 256, 176, 32, True),
        QuantFormat("q6_k", 5, 256, 210, 16, False),
    )
}
