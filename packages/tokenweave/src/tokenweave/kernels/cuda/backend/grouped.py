"""Mixtures of experts by grouped products: every expert's rows through its own weights, in one call for all experts.

Four kernels: rows are placed by expert (`placing`), tiles of them go through gate, up and activation, then through
down (`products`), and each row's products are weighed and added in the order in which its experts were chosen.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.cuda.backend.experts import E, ExpertTable
from tokenweave.kernels.cuda.backend.placing import place
from tokenweave.kernels.cuda.backend.products import multiply_rows, rows_of_tile
from tokenweave.kernels.cuda.backend.start import start

SUM_COLUMNS = 1024
SUM_OPTIONS = {"COLUMNS": SUM_COLUMNS, "num_warps": 4, "enable_fp_fusion": True}


def grouped_mixture(
    x: Tensor, experts: ExpertTable[E], chosen: Tensor, weights: Tensor, device: torch.device
) -> Tensor:
    """`Kernels.mixture`. A choice of an expert that is not there adds nothing."""
    (m, per_row), num_experts, n = chosen.shape, len(experts), experts.down.n
    rows = min(
        rows_of_tile(m * per_row / num_experts, x.dtype, is_gated, shape.format)
        for is_gated, shape in ((True, experts.up), (False, experts.down))
    )
    tiles = place(chosen, num_experts, rows, device)
    inner = torch.empty((m * per_row, experts.up.n), dtype=x.dtype, device=device)
    products = torch.empty((m * per_row, n), dtype=x.dtype, device=device)
    out = torch.empty((m, n), dtype=torch.float32, device=device)
    is_silu = experts.activation == "silu"
    multiply_rows(x, experts.up, experts.gates, experts.ups, None, inner, tiles, per_row, is_silu)
    multiply_rows(inner, experts.down, experts.downs, None, None, products, tiles)
    start(
        sum_choices,
        (m, triton.cdiv(n, SUM_COLUMNS)),
        device,
        products,
        chosen,
        weights,
        out,
        num_experts,
        per_row,
        n,
        **SUM_OPTIONS,
    )
    return out


@triton.jit(do_not_specialize=["num_experts"])
def sum_choices(
    products,  # (m * per_row, n)
    chosen,  # *int64 (m, per_row)
    weights,  # *float32 (m, per_row)
    out,  # *float32 (m, n)
    num_experts,
    per_row,
    n,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for each in range(per_row):
        choice = row * per_row + each
        expert = tl.load(chosen + choice)
        num_there = tl.where((expert >= 0) & (expert < num_experts), n, 0)
        product = tl.load(products + choice * n + column, mask=column < num_there, other=0.0)
        total += product.to(tl.float32) * tl.load(weights + choice)
    tl.store(out + row * n + column, total, mask=column < n)
