"""Memory: where the bytes of a KV cache come from. A cache takes all it needs at once, from one source of its own.

Every source gives zeroed memory. On the host it becomes resident only once it is written, on huge pages where the
system has them: a cache costs what is in it, not what it could hold. On a device it is taken at once.

emucxl's tiers are imported when the first is made: their extension has to be built, and a cache on a device needs none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from emucxl.errors import InUseError, UnavailableError
from tokenweave.kernels.checks import CPU
from tokenweave.kernels.memory import lazy_zeros, zeros_on

if TYPE_CHECKING:
    from emucxl.providers import Provider


class MemorySource(Protocol):
    """Brings the memory of one cache. Thread safety: none; the rank that has the cache has its source."""

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns the cache's tensor, zeroed. It is asked for once.

        Raises:
            EmucxlError, OSError, OverflowError, torch.OutOfMemoryError: there is not that much.
        """

    def close(self) -> None:
        """Gives the memory back, at once or with the last tensor that uses it."""


class TierMemory:
    """A tier of emucxl, on pages of `provider`: by default, this process's own memory.

    A tier that the system could not fill is refused. Better that, at the start, than the kernel's killer later.
    """

    def __init__(self, provider: Provider | None = None) -> None:
        """Raises ImportError or UnavailableError where emucxl's native parts are not there."""
        from emucxl import Anon, Context

        self._provider = Anon() if provider is None else provider
        self._context = Context()

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes == 0:
            return torch.zeros(tuple(shape), dtype=dtype)
        tier = self._context.add_tier("kv-cache", size_bytes, self._provider)
        return torch.frombuffer(tier.alloc(size_bytes), dtype=dtype).view(tuple(shape))

    def close(self) -> None:
        with suppress(InUseError):  # a tensor is still in use, and keeps the context
            self._context.close()


class PrivatePages:
    """Pages mapped by Python, where emucxl's native parts cannot be loaded: the reference kernels run without it."""

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return lazy_zeros(shape, dtype)

    def close(self) -> None:
        """Does nothing: the pages go with the tensor."""


class DeviceMemory:
    """The memory of a device that torch knows, from torch's own allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return zeros_on(self._device)(shape, dtype)

    def close(self) -> None:
        """Does nothing: the memory goes back to torch with the tensor."""


def default_source(device: torch.device = CPU) -> MemorySource:
    """Returns a tier of this process's own memory, plain pages where there is no native core, or a device's memory."""
    if device.type != "cpu":
        return DeviceMemory(device)
    try:
        return TierMemory()
    except (ImportError, UnavailableError):
        return PrivatePages()
