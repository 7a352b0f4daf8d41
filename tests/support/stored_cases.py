"""Helpers of the tests of stored weights: random blocks of every format, with scales as small as a model's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenweave.kernels import FORMATS, QuantFormat, StoredWeight

# The first bytes of the float16 numbers in a block.
HALVES = {"q4_0": (0,), "q4_1": (0, 2), "q8_0": (0,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
# A scale that makes values of about one, whatever the size of the codes and of the scales inside a block.
UNIT_SCALE = {"q4_0": 0.2, "q4_1": 0.2, "q8_0": 0.013, "q4_k": 4e-3, "q5_k": 2e-3, "q6_k": 5e-4}
ALL_FORMATS = list(FORMATS.values())


def random_blocks(seed: int, form: QuantFormat, rows: int, blocks_per_row: int) -> Tensor:
    """Rows of blocks whose codes are any bytes and whose float16 scales lie within a factor of two: uint8."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * blocks_per_row, form.block_bytes), dtype=np.uint8)
    for place, first in enumerate(HALVES[form.name]):
        sign = rng.choice([-1.0, 1.0], len(blocks))
        size = (
            UNIT_SCALE[form.name]
            * rng.uniform(0.5, 1.0, len(blocks))
            * (1 + 6 * place * (form.name == "q4_1"))
        )
        blocks[:, first : first + 2] = (sign * size).astype(np.float16)[:, None].view(np.uint8)
    return torch.from_numpy(blocks.reshape(rows, blocks_per_row * form.block_bytes))


def random_weight(seed: int, form: QuantFormat, n: int, k: int, first_column: int = 0) -> StoredWeight:
    """A weight of n rows; its k columns may begin and end anywhere in blocks."""
    count = -(-(first_column + k) // form.block_values)
    return StoredWeight(form, n, k, random_blocks(seed, form, n, count), first_column)
