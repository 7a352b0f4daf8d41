"""Copies that ranks of one process hand each other; on a CUDA device, each with the event that says when it is there.

Thread safety: a `Shared` is made by one thread, and read by any.

Invariants:
  1. A copy is made by the current stream of the thread that gives it, and a reader's current stream waits for that. The
     host waits for no device.
  2. The memory of a copy is nobody else's before the streams that read it are done: torch's allocator is told of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Shared(NamedTuple):
    """A copy of a rank's tensor, which nobody writes again."""

    copy: Tensor
    made: torch.cuda.Event | None  # None on the host, where it is there at once


def give(tensor: Tensor) -> Shared:
    """A copy of `tensor` as it is once the current stream has come to this call."""
    copy = tensor.clone()
    return Shared(copy, torch.cuda.current_stream(copy.device).record_event() if copy.is_cuda else None)


def take(shared: Shared, device: torch.device) -> Tensor:
    """The copy on `device`, for the current stream to read from here on."""
    copy, made = shared
    if made is not None:
        # The stream that reads: torch copies to another device by the current one of the device it copies from.
        reader = torch.cuda.current_stream(copy.device)
        reader.wait_event(made)
        copy.record_stream(reader)
    return copy.to(device, non_blocking=True)
