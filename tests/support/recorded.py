"""Recorded: which operations of torch a block of code runs, for tests that the host waits for no device."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero"}  # the host waits for what they read


class Recorded(TorchDispatchMode):
    """The names of torch's operations that ran within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.names.add(function.name().partition(".")[0])
        return function(*arguments, **(named or {}))
