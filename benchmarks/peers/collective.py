"""The common part of the systems that `make bench fused` compares: inputs, the check of a result, and the clock."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .protocol import Operation

EPS = 1e-5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Where a sum or a residual is rounded to bfloat16, as a peer's is, before it is normed.
TOLERANCE = {"float32": (1e-5, 1e-5), "bfloat16": (4e-2, 4e-2)}


class RankOfSystems(ABC):
    """One rank, on a core of its own. Its systems each sum over the ranks, add the residual, and normalise."""

    rank: int
    size: int

    def __init__(self) -> None:
        self._calls: dict[str, Callable[[], tuple[Tensor, range]]] = {}

    @abstractmethod
    def prepare(
        self, system: str, hidden: Tensor, residual: Tensor, weight: Tensor
    ) -> Callable[[], tuple[Tensor, range]]:
        """The call to time, on these inputs; it gives the normed rows, and which rows of them count on this rank."""

    def begin(self, name: str, dtype: str, num_tokens: int, hidden_size: int) -> dict[str, Any]:
        """Get ready to time a system on these shapes, after checking what it gives.

        Raises: ArithmeticError if that is not the sum, the residual add and the norm.
        """
        parts, residual, weight = inputs(self.size, dtype, num_tokens, hidden_size)
        summed = residual + sum(part.float() for part in parts)
        expected = summed * torch.rsqrt(summed.square().mean(-1, keepdim=True) + EPS) * weight.float()
        call = self._calls[name] = self.prepare(name, parts[self.rank], residual, weight)
        normed, rows = call()
        own = slice(rows.start, rows.stop)
        rtol, atol = TOLERANCE[dtype]
        if not torch.allclose(normed[own].float(), expected[own], rtol=rtol, atol=atol):
            worst = (normed[own].float() - expected[own]).abs().max().item()
            raise ArithmeticError(f"{name} in {dtype} is off by {worst:g}")
        return {}

    def time(self, name: str, calls: int) -> dict[str, Any]:
        """Seconds of one call of a system, over `calls`. The call before them brings the ranks together."""
        call = self._calls[name]
        call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return {"seconds": (time.perf_counter() - start) / calls}

    def operations(self) -> dict[str, Operation]:
        return {"begin": self.begin, "time": self.time}


def take_core(rank: int) -> None:
    """One thread, on a core of its own where there are enough."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)


def inputs(size: int, dtype: str, num_tokens: int, hidden_size: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """The partial sums of the ranks, the residual and the weight: the same on every rank."""
    generator = torch.Generator().manual_seed(num_tokens)
    shape = (num_tokens, hidden_size)
    parts = [torch.randn(shape, generator=generator).to(DTYPES[dtype]) for _ in range(size)]
    weight = torch.rand(hidden_size, generator=generator).to(DTYPES[dtype])
    return parts, torch.randn(shape, generator=generator), weight
