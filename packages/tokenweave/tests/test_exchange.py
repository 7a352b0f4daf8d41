"""The speed of a link that is not known, from a group whose clock is its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tokenweave import exchange as module
from tokenweave.exchange import measure_exchange


class TimedGroup:
    """A group whose reductions take what a link of 10 MB/s and 2 ms takes, by a clock of its own."""

    size, compute_s, latency_s, bytes_per_s = 2, 1e-4, 2e-3, 1e7

    def __init__(self) -> None:
        self.wall_s = self.busy_s = 0.0

    def barrier(self) -> None: ...

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(num_tokens, hidden_size, dtype=dtype)

    def all_reduce_rms_norm(self, hidden: torch.Tensor, *_: object) -> None:
        self.busy_s += self.compute_s
        self.wall_s += self.compute_s + 2 * (self.latency_s + hidden.nbytes / 2 / self.bytes_per_s)


def test_the_speed_of_an_unknown_link_is_found_by_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    group = TimedGroup()
    clock = SimpleNamespace(perf_counter=lambda: group.wall_s, process_time=lambda: group.busy_s)
    monkeypatch.setattr(module, "time", clock)
    exchange = measure_exchange(group, 256, torch.float32)  # type: ignore[arg-type]
    assert exchange.link.bytes_per_s == pytest.approx(group.bytes_per_s)
    assert exchange.link.latency_s == pytest.approx(group.latency_s)
    assert exchange.reduce(256) == pytest.approx(group.compute_s)
