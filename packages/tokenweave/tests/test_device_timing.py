"""Times of a group's reductions and of a device's peaks, on devices whose time is made up."""

from __future__ import annotations

import pytest
import torch

from support.fake_events import FakeDevice
from support.rank_groups import ThreadRanks
from tokenweave import device_timing
from tokenweave.communicators import thread_group
from tokenweave.device_timing import measure_peaks, reduced_tokens
from tokenweave.stage_clock import EventClock


def test_every_rank_times_the_reductions_of_its_group() -> None:
    group = ThreadRanks(list(thread_group(2, timeout_s=20)))
    for curve in group.run("device_rank_programs.timed_reductions", 1e-6, 300):
        assert curve.tokens == (16, 64, 256, 300)
        for tokens in curve.tokens:
            assert curve(tokens) == pytest.approx(1e-6 * tokens)
    group.close()


@pytest.mark.parametrize(
    ("most", "counts"), [(1, (1,)), (16, (16,)), (17, (16, 17)), (1024, (16, 64, 256, 1024))]
)
def test_reductions_are_timed_up_to_the_most_tokens(most: int, counts: tuple[int, ...]) -> None:
    assert reduced_tokens(most) == counts


def test_peaks_are_those_of_a_product_and_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    monkeypatch.setattr(device_timing, "PRODUCT", 8)
    monkeypatch.setattr(device_timing, "COPIED_BYTES", 1000)
    mm, copy = torch.mm, torch.Tensor.copy_
    monkeypatch.setattr(
        torch, "mm", lambda *args, **keywords: (device.issue(0, 2e-6), mm(*args, **keywords))[1]
    )
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *args: (device.issue(0, 4e-6), copy(*args))[1])
    peaks = measure_peaks(EventClock(device, device.now), torch.device("cpu"), torch.float32)
    assert peaks.flops_per_s == pytest.approx(2 * 8**3 / 2e-6)
    assert peaks.bytes_per_s == pytest.approx(2 * 1000 / 4e-6)
