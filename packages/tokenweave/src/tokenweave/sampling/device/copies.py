"""Copies between the host and a device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def send(host: Tensor, target: Tensor) -> Tensor:
    """Queues a copy of `host` to `target`, and gives that. For CUDA pinned memory carries it, as long as that takes."""
    if target.device.type == "cuda":
        host = host.pin_memory()
    return target.copy_(host, non_blocking=True)


def synchronize(event: torch.cuda.Event) -> None:
    """Waits for `event`, as long as it takes."""
    event.synchronize()


class Returning:
    """A tensor on its way to the host, queued behind the operations that make it.

    For CUDA the copy is queued when this is made, so that nothing which is queued later delays it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._copied: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self, wait_for: Callable[[torch.cuda.Event], None] = synchronize) -> Tensor:
        """The tensor on the host. The one place where sampling waits for a device: by `wait_for` its event.

        Where ranks share the work that is `Communicator.wait_for`, which ends also when one of them is gone.
        """
        if self._copied is not None:
            wait_for(self._copied)
        return self._tensor.cpu()
