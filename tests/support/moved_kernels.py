"""MovedKernels: kernels of a device, for tests that make their tensors on the CPU."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenweave.kernels import AttentionBatch, AttentionLayer, Kernels, ResidualNorms

NOT_MOVED = ("pack", "pack_stored", "new_kv_cache")  # weights come from the CPU; a cache stays on the device


class MovedKernels:
    """Moves what a call is given to the device, and back what it wrote or gives."""

    def __init__(self, inner: Kernels) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return partial(self._call, found) if callable(found) and name not in NOT_MOVED else found

    def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        device = self.inner.device
        moved = [on(device, each) for each in arguments]
        moved_named = {name: on(device, each) for name, each in named.items()}
        result = function(*moved, **moved_named)
        pairs = zip([*arguments, *named.values()], [*moved, *moved_named.values()], strict=True)
        for given, used in pairs:
            if isinstance(given, Tensor) and used is not given:
                given.copy_(used)
            if result is used:
                result = given
        return result.cpu()


def on(device: torch.device, value: Any) -> Any:
    """A tensor, or what describes a batch, a layer or norms, on `device`; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, AttentionBatch | AttentionLayer | ResidualNorms):
        names = [each.name for each in fields(value) if each.init]
        return replace(value, **{name: on(device, getattr(value, name)) for name in names})
    return value
