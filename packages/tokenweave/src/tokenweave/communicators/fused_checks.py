"""The checks of a fused call's arguments, before anything of it is launched."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.errors import CommunicatorError
from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.cuda.sharing import MAX_TOKENS, VECTOR_BYTES, VECTOR_ELEMENTS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_fused(
    device: torch.device, num_owned: int, hidden: Tensor, residual: Tensor, norms: ResidualNorms
) -> None:
    """Raises CommunicatorError unless a kernel on `device` can take these; `num_owned`: the rows that the rank owns."""
    if hidden.dim() != 2 or hidden.dtype not in DTYPES or hidden.device != device:
        raise CommunicatorError(
            f"got hidden of {hidden.dtype} {tuple(hidden.shape)} on {hidden.device}; expected (num_tokens, "
            f"hidden_size) of float32, bfloat16 or float16 on {device}"
        )
    num_tokens, hidden_size = hidden.shape
    if num_tokens > MAX_TOKENS:
        raise CommunicatorError(f"got {num_tokens:,} tokens in one call; expected at most {MAX_TOKENS:,}")
    shard = torch.Size((num_owned, hidden_size))
    wanted = shard if residual.shape == shard else hidden.shape
    _check_beside("residual", residual, wanted, (torch.float32,), device)
    _check_aligned("residual", residual)
    for name, weight in norms.weights.items():
        _check_beside(name, weight, hidden.shape[1:], DTYPES, device)
        if hidden_size % VECTOR_ELEMENTS == 0:  # the switch's path may take it
            _check_aligned(name, weight)


def _check_beside(
    name: str,
    tensor: Tensor,
    shape: torch.Size,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    if (
        tensor.shape == shape
        and tensor.dtype in dtypes
        and tensor.device == device
        and tensor.is_contiguous()
    ):
        return
    wanted = " or ".join(str(dtype) for dtype in dtypes)
    raise CommunicatorError(
        f"got {name} of {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} with strides {tensor.stride()}; "
        f"expected {wanted} {tuple(shape)} on {device}, contiguous"
    )


def _check_aligned(name: str, tensor: Tensor) -> None:
    if excess := tensor.data_ptr() % VECTOR_BYTES:
        raise CommunicatorError(
            f"got {name} that begins {excess} bytes after a multiple of {VECTOR_BYTES}; expected it at a multiple, "
            "which the kernels' widest accesses need: a tensor of its own, or a view from such a place on"
        )
