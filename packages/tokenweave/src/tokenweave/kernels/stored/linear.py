"""Linear layers and embeddings over stored weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels import checks
from tokenweave.kernels.stored.dequantise import dequantise
from tokenweave.kernels.stored.weight import StoredWeight
from tokenweave.kernels.values import PackedLinear


def as_sequence(weights: StoredWeight | Sequence[StoredWeight]) -> tuple[StoredWeight, ...]:
    return (weights,) if isinstance(weights, StoredWeight) else tuple(weights)


def check_pack_stored(weights: Sequence[StoredWeight], bias: Tensor | None, dtype: torch.dtype) -> None:
    """Raises unless the weights have as many columns, and the bias as many values as they have rows."""
    checks.check_dtype("dtype", dtype)
    widths = sorted({weight.k for weight in weights})
    if len(widths) != 1:
        raise KernelError(
            f"stored weights have {widths or 'no'} columns, expected all of a stack to have as many"
        )
    if bias is not None:
        checks.check_dtype("bias", bias.dtype)
        checks.check_dense("bias", bias, bias.dtype, (sum(weight.n for weight in weights),))


def format_names(weights: Sequence[StoredWeight]) -> str:
    """The formats of a stack, each once, in order: "q4_k" or "q4_k+q6_k"."""
    return "+".join(dict.fromkeys(weight.format.name for weight in weights))


def reference_pack_stored(
    weights: Sequence[StoredWeight], bias: Tensor | None, dtype: torch.dtype, layout: str
) -> PackedLinear:
    """Keeps the dequantised values in float32, whatever the activations' dtype."""
    data = torch.cat([dequantise(weight) for weight in weights])
    n, k = data.shape
    bias = None if bias is None else bias.to(torch.float32, copy=True)
    return PackedLinear(n, k, dtype, layout, data, bias, format_names(weights))
