"""Starting a Triton kernel on the device where its tensors lie."""

from __future__ import annotations

import threading
from typing import Any

import torch

_INTERPRETER = threading.Lock()  # it keeps where in the grid it is in one place


def start(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **options: Any) -> None:
    """Queues `kernel` over `grid` on torch's current stream of `device`. Nothing is started where a side of it is 0.

    Triton starts kernels on the thread's current device, and every thread begins with the first one of the machine.
    """
    if 0 in grid:
        return
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*arguments, **options)
    else:
        with _INTERPRETER:
            kernel[grid](*arguments, **options)
