"""A few layers of products, woven or whole, over ranks that share one device: a model as far as its plan is concerned.

Every handler of a forward pass is here. Products are torch's, reductions the fused operation by peer pointers. Each
part of a batch has ranks of its own: buffers, residual and counters. Nothing is allocated while a plan runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.fused import check_all_came
from tokenweave.execute import Handler, handlers_of
from tokenweave.ops import Operation
from tokenweave.plan import Plan, Step, plan_forward

EPS = 1e-5


@dataclass(frozen=True)
class StackShape:
    """The size of a stack."""

    size: int  # ranks
    num_layers: int
    num_tokens: int
    hidden_size: int
    inner_size: int  # of one rank
    num_ctas: int


@dataclass(frozen=True)
class StackInput:
    """The numbers that every stack of one shape computes with: it starts from `rows`, a partial sum on each rank."""

    rows: list[Tensor]  # of each rank, (num_tokens, hidden_size)
    up: list[list[Tensor]]  # by sublayer and rank, (hidden_size, inner_size)
    down: list[list[Tensor]]  # by sublayer and rank, (inner_size, hidden_size)

    @classmethod
    def random(cls, device: Device, shape: StackShape) -> StackInput:
        ranks, layers = range(shape.size), range(2 * shape.num_layers)
        wide, narrow = shape.hidden_size, shape.inner_size

        def weights(first: int, rows: int, columns: int) -> list[list[Tensor]]:
            return [
                [
                    device.random(rows, columns, seed=first + shape.size * layer + rank, scale=rows**-0.5)
                    for rank in ranks
                ]
                for layer in layers
            ]

        rows = [device.random(shape.num_tokens, wide, seed=rank) for rank in ranks]
        return cls(rows, weights(1000, wide, narrow), weights(2000, narrow, wide))

    def reference(self) -> Tensor:
        """The normed rows after the last layer, in float32."""
        residual = torch.stack([rows.float() for rows in self.rows]).sum(0)
        for up, down in zip(self.up, self.down, strict=True):
            normed = torch.nn.functional.rms_norm(residual, residual.shape[-1:], eps=EPS)
            for left, right in zip(up, down, strict=True):
                residual = residual + normed @ left.float() @ right.float()
        return torch.nn.functional.rms_norm(residual, residual.shape[-1:], eps=EPS)


class Stack:
    """Runs `plan`, whose handlers are its methods; `result` (num_tokens, hidden_size) has the rows afterwards."""

    def __init__(self, device: Device, shape: StackShape, given: StackInput, split: int | None) -> None:
        self.plan: Plan = plan_forward(shape.num_layers, shape.num_tokens, split)
        self.handlers: dict[Operation, Handler] = handlers_of(self, self.plan.ops)
        self._device, self._given = device, given
        self._rows = [slice(part.start, part.stop) for part in self.plan.parts]
        counts = [len(part) for part in self.plan.parts]
        self._ranks = [device.ranks(shape.size, n, shape.hidden_size, shape.num_ctas) for n in counts]
        self._inner = [
            [torch.empty(n, shape.inner_size, device=device.kind, dtype=device.dtype) for _ in given.rows]
            for n in counts
        ]
        self.result = torch.empty_like(given.rows[0])

    def embed(self, step: Step) -> None:
        ranks, rows = self._ranks[step.part or 0], self._rows[step.part or 0]
        for rank, part in enumerate(self._given.rows):
            ranks.hidden[rank].copy_(part[rows])
            ranks.residual[rank].zero_()

    def attention(self, step: Step) -> None:
        self._sublayer(step, 0)

    def mlp(self, step: Step) -> None:
        self._sublayer(step, 1)

    def reduce_norm(self, step: Step) -> None:
        ranks = self._ranks[step.part or 0]
        self._device.on_all_ranks(ranks, ranks.by_peers, len(ranks.hidden[0]))

    def output_head(self, step: Step) -> None:
        part = step.part or 0
        self.result[self._rows[part]] = self._ranks[part].hidden[0]

    def gather(self, step: Step) -> None:
        """Rank 0 has all there is."""

    def check_all_came(self) -> None:
        """Raises TimeoutError if a rank waited for another in vain."""
        for ranks in self._ranks:
            check_all_came(ranks)

    def _sublayer(self, step: Step, which: int) -> None:
        layer, part = 2 * (step.layer or 0) + which, step.part or 0
        ranks = self._ranks[part]
        for rank, inner in enumerate(self._inner[part]):
            torch.mm(ranks.hidden[rank], self._given.up[layer][rank], out=inner)
            torch.mm(inner, self._given.down[layer][rank], out=ranks.hidden[rank])
