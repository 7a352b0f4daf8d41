"""Operations: what torch is asked for meanwhile. And the operations for which a host waits for its device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Whatever reads a number on the host, or gives a shape that depends on numbers.
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "index", "index_put_", "unique",
    "_unique2", "unique_consecutive", "repeat_interleave", "bincount", "argwhere",
}  # fmt: skip
FROM_HOST = {"lift_fresh", "_pin_memory"}  # a tensor made of numbers that the host has


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations that run inside it, each with the shapes of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, list[tuple[int, ...]]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler for that: seconds, for what never compiles."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        self.taken.append((function.overloadpacket.__name__, shapes))
        return given

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.taken}


class OnlyOn(Operations):
    """Fails where an operation has a tensor of another device: the host gave it, or is to read it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = super().__torch_dispatch__(function, types, args, kwargs)
        places = {leaf.device for leaf in tree_leaves((args, kwargs, given)) if isinstance(leaf, Tensor)}
        assert places <= {self.device}, f"{function} has tensors on {places}"
        return given
