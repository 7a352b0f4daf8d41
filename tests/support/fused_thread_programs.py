"""Programs for the ranks of a `fused_thread_group` on the CPU. Each takes the rank's communicator first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenweave.kernels import ResidualNorms, make_kernels
from tokenweave.kernels.norms import reference_add_rms_norm

EPS = 1e-5


def opened(comm: Any, num_ctas: int, max_tokens: int, hidden_size: int) -> None:
    """Joins, with room for activations."""
    comm.kernels = make_kernels("reference")
    comm.open(torch.device("cpu"), num_ctas)
    comm.reserve_activations(max_tokens, hidden_size, torch.float32)


def reduced(comm: Any, num_tokens: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, range]:
    """The normed rows and the rank's residual, those to expect, and the rows that the rank owns."""
    parts = [
        torch.randn(num_tokens, hidden_size, generator=torch.Generator().manual_seed(seed))
        for seed in range(comm.size)
    ]
    norms = ResidualNorms(torch.full((hidden_size,), 1.5), EPS)
    summed = torch.zeros(num_tokens, hidden_size)
    expected = reference_add_rms_norm(torch.stack(parts).sum(0), summed, norms)
    partial = comm.new_partial(num_tokens, hidden_size, torch.float32).copy_(parts[comm.rank])
    residual = comm.new_residual(num_tokens, hidden_size, torch.float32)
    normed = comm.all_reduce_rms_norm(partial, residual, norms).clone()
    return normed, residual, expected, summed, comm.owned_rows(num_tokens, hidden_size, torch.float32)


def exchanged(comm: Any, num_tokens: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two rows of the residual and what they should be, and the columns of all ranks, two and three of them."""
    _, residual, _, summed, _ = reduced(comm, num_tokens, hidden_size)
    rows = torch.tensor([1, num_tokens - 1])
    selected = comm.select_residual(residual, rows, num_tokens, torch.float32)
    columns = comm.gather_columns(torch.full((3, 2 + comm.rank), float(comm.rank)), [2, 3])
    return selected, summed[rows], columns
