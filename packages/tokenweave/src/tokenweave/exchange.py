"""The exchange: how long a group's reductions take on processors whose link is not known, told apart by who waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenweave.cost import LinkSpeed
from tokenweave.curves import Curve
from tokenweave.kernels import ResidualNorms

if TYPE_CHECKING:
    from tokenweave.communicators import Communicator

ROUNDS = 3
EXCHANGED_TOKENS = (16, 256)
LEAST_S_PER_BYTE = 1e-13  # faster links than that are none


@dataclass(frozen=True)
class Exchange:
    """The measured time of a group's reductions, where the link is not known: the core's part, and the link's."""

    reduce: Curve
    link: LinkSpeed


def measure_exchange(communicator: Communicator, hidden_size: int, dtype: torch.dtype) -> Exchange:
    """Times `all_reduce_rms_norm` at a few and at many tokens. A collective call.

    What this process computed meanwhile is the core's part. The rest is waiting, and counts as two exchanges over a
    link: its latency from the few tokens, its bandwidth from the many.
    """
    weight = torch.ones(hidden_size, dtype=dtype)
    busy_s, idle_s = [], []
    for num_tokens in EXCHANGED_TOKENS:
        samples = [
            _time_reduction(communicator, num_tokens, weight) for _ in range(1 + ROUNDS)
        ]  # the first one connects
        busy_s.append(min(busy for busy, _ in samples[1:]))
        idle_s.append(min(idle for _, idle in samples[1:]))
    sent_bytes = weight.nbytes * (communicator.size - 1) / communicator.size
    few, many = (count * sent_bytes for count in EXCHANGED_TOKENS)
    per_byte_s = max((idle_s[1] - idle_s[0]) / 2 / (many - few), LEAST_S_PER_BYTE)
    latency_s = max(0.0, idle_s[0] / 2 - few * per_byte_s)
    return Exchange(Curve(EXCHANGED_TOKENS, tuple(busy_s)), LinkSpeed(1 / per_byte_s, latency_s))


def _time_reduction(communicator: Communicator, num_tokens: int, weight: torch.Tensor) -> tuple[float, float]:
    """Seconds that this process computed, and that it waited."""
    partial = communicator.new_partial(num_tokens, len(weight), weight.dtype).zero_()
    residual = torch.zeros(num_tokens, len(weight))
    communicator.barrier()
    wall_s, busy_s = time.perf_counter(), time.process_time()
    communicator.all_reduce_rms_norm(partial, residual, ResidualNorms(weight, 1e-5))
    wall_s, busy_s = time.perf_counter() - wall_s, time.process_time() - busy_s
    return min(busy_s, wall_s), max(0.0, wall_s - busy_s)
