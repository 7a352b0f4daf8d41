"""Our own sums over ranks, fused with residual add and RMSNorm and not, and gloo with torch's; see `collective`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from emucxl.shared_memory import SharedSegment
from tokenweave import native
from tokenweave.communicators import ShmCommunicator
from tokenweave.kernels import ResidualNorms, make_kernels

from .collective import EPS, RankOfSystems, take_core
from .protocol import Operation


class FusedRank(RankOfSystems):
    """`fused`, `unfused` (a zero-copy all-reduce, then the norm of every row) and `gloo`."""

    def load(
        self, rank: int, size: int, segments: list[str], segment_bytes: int, most: list[int], port: int
    ) -> dict[str, Any]:
        """`segments`: files of the segment that the ranks meet in, and of an empty one. `most`: tokens, hidden."""
        take_core(rank)
        self.rank, self.size = rank, size
        meeting, symmetric = (os.open(path, os.O_RDWR) for path in segments)
        self.segment = SharedSegment.attach(meeting, segment_bytes)
        self.kernels = make_kernels("native", 1)
        self.comm = ShmCommunicator(self.segment, rank, size, kernels=self.kernels, symmetric_fd=symmetric)
        self.comm.reserve_activations(most[0], most[1], torch.float32)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        return {"torch": torch.__version__}

    def prepare(
        self, system: str, hidden: Tensor, residual: Tensor, weight: Tensor
    ) -> Callable[[], tuple[Tensor, range]]:
        if system == "fused":
            return self._fused(hidden, residual, weight)
        if system == "unfused":
            return self._unfused(hidden, residual, weight)
        return self._gloo(hidden, residual, weight)

    def _fused(self, hidden: Tensor, residual: Tensor, weight: Tensor) -> Callable[[], tuple[Tensor, range]]:
        reduce = self.comm.all_reduce_rms_norm
        partial = self.comm.new_partial(len(hidden), hidden.shape[1], hidden.dtype).copy_(hidden)
        everything, norms = range(len(hidden)), ResidualNorms(weight, EPS)
        return lambda: (reduce(partial, residual, norms), everything)

    def _unfused(
        self, hidden: Tensor, residual: Tensor, weight: Tensor
    ) -> Callable[[], tuple[Tensor, range]]:
        """The same shared memory, the same kernels: each rank sums its rows for all, then norms every row."""
        symmetric = self.comm.symmetric_memory
        partial = self.comm.new_partial(len(hidden), hidden.shape[1], hidden.dtype).copy_(hidden)
        total = symmetric.next_answer(len(hidden), hidden.shape[1], hidden.dtype)
        out = torch.empty_like(hidden)
        first, last = (len(hidden) * rank // self.size for rank in (self.rank, self.rank + 1))
        parts = [symmetric.of_rank(rank, partial)[first:last] for rank in range(self.size)]
        own, everything, barrier = total[first:last], range(len(hidden)), self.comm.barrier

        def run() -> tuple[Tensor, range]:
            barrier()
            torch.add(parts[0], parts[1], out=own)
            barrier()
            return self.kernels.add_rms_norm(total, residual, ResidualNorms(weight, EPS), out=out), everything

        return run

    def _gloo(self, hidden: Tensor, residual: Tensor, weight: Tensor) -> Callable[[], tuple[Tensor, range]]:
        everything, shape = range(len(hidden)), hidden.shape[1:]
        first = hidden.clone()

        def run() -> tuple[Tensor, range]:
            dist.all_reduce(first)
            residual.add_(first)
            return torch.nn.functional.rms_norm(residual, shape, weight.float(), EPS).to(
                weight.dtype
            ), everything

        return run

    def limit(self, dtype: str, seconds: float) -> dict[str, Any]:
        """Bytes per second that this core reads and writes in the mix of the operation; ask all ranks at once."""
        name = {"float32": "fused_f32_gbps", "bfloat16": "fused_bf16_gbps"}[dtype]
        return {"bytes_per_s": native.measure_limit(name, 1, seconds) * 1e9}

    def operations(self) -> dict[str, Operation]:
        return {"load": self.load, "limit": self.limit, **super().operations()}


def operations() -> dict[str, Operation]:
    """The requests that the worker answers, by name."""
    return FusedRank().operations()
