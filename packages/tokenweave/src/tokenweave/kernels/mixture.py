"""Mixtures of experts: each row through the few gated MLPs that were chosen for it (Shazeer et al., arXiv 1701.06538).

Two ways to the same sums, made of the kernels' own products. In both an expert adds to a row in the experts' order, so
that a row's sum does not depend on what else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from tokenweave.kernels import checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenweave.kernels.activation import Activation
    from tokenweave.kernels.values import PackedLinear


class Expert(Protocol):
    """A gated MLP: down(activation(gate(x)) * up(x))."""

    @property
    def gate(self) -> PackedLinear: ...  # (i, k)

    @property
    def up(self) -> PackedLinear: ...  # (i, k)

    @property
    def down(self) -> PackedLinear: ...  # (n, i)

    @property
    def activation(self) -> Activation: ...


E = TypeVar("E", bound=Expert)


class Products(Protocol):
    """The products that mixtures are made of: `Kernels` has them."""

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor: ...

    def gated_linear(
        self, x: Tensor, gate: PackedLinear, up: PackedLinear, activation: Activation
    ) -> Tensor: ...


def check_mixture(
    x: Tensor,
    experts: Sequence[Expert],
    chosen: Tensor,
    weights: Tensor,
    layout: str,
    device: torch.device = checks.CPU,
) -> None:
    """Raises unless x has rows for the experts, and each row as many experts as weights."""
    checks.check_linear(x, experts[0].gate, None, layout, device)
    choices = (x.shape[0], chosen.shape[-1])
    checks.check_dense("chosen", chosen, torch.int64, choices, device)
    checks.check_dense("weights", weights, torch.float32, choices, device)


def mixture_of_chosen_rows(
    kernels: Products, x: Tensor, experts: Sequence[Expert], chosen: Tensor, weights: Tensor
) -> Tensor:
    """Gathers the rows of each expert: no product is computed in vain. The host reads which rows they are."""
    total = x.new_zeros((x.shape[0], experts[0].down.n), dtype=torch.float32)
    for index, expert in enumerate(experts):
        rows, place = (chosen == index).nonzero(as_tuple=True)
        if rows.numel():
            total[rows] += _through(kernels, x[rows], expert) * weights[rows, place, None]
    return total


def mixture_of_all_rows(
    kernels: Products, x: Tensor, experts: Sequence[Expert], chosen: Tensor, weights: Tensor
) -> Tensor:
    """Puts every row through every expert, and keeps what was chosen: the host reads nothing.

    The work of a model with all of its experts: so many times more as there are experts for each that is chosen.
    """
    total = x.new_zeros((x.shape[0], experts[0].down.n), dtype=torch.float32)
    shares = x.new_zeros((x.shape[0], len(experts)), dtype=torch.float32).scatter_(1, chosen, weights)
    is_chosen = torch.zeros_like(shares, dtype=torch.bool).scatter_(1, chosen, True)
    for index, expert in enumerate(experts):
        product = _through(kernels, x, expert) * shares[:, index, None]
        total += product.masked_fill_(
            ~is_chosen[:, index, None], 0.0
        )  # it may be infinite where nobody wants it
    return total


def _through(kernels: Products, x: Tensor, expert: Expert) -> Tensor:
    """(m, n) float32, rounded to x's dtype on the way."""
    gated = kernels.gated_linear(x, expert.gate, expert.up, expert.activation)
    return kernels.linear(gated, expert.down).float()
