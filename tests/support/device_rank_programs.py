"""Programs for ranks, each with a device whose time is made up. Each takes the rank's communicator first."""

from __future__ import annotations

from typing import Any

import torch

from support.fake_events import FakeDevice
from tokenweave.device_timing import measure_reductions
from tokenweave.stage_clock import EventClock


def timed_reductions(comm: Any, token_s: float, max_tokens: int) -> Any:
    """The times of reductions that take so many seconds a token, on a device of the rank's own."""
    device = FakeDevice()
    reduce = comm.all_reduce_rms_norm

    def timed(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
        device.issue(10e-6, token_s * len(hidden))
        done: torch.Tensor = reduce(hidden, *arguments)
        return done

    comm.all_reduce_rms_norm = timed
    return measure_reductions(comm, EventClock(device, device.now), 8, torch.float32, max_tokens)
