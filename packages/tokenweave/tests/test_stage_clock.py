"""Clocks for stages: what they count, told from a device whose time is made up."""

from __future__ import annotations

import pytest

from support.fake_events import FakeDevice
from tokenweave.stage_clock import HOLD, EventClock, HostClock

ISSUE_S, WORK_S = 50e-6, 5e-6


def test_a_stage_that_is_shorter_than_its_launch_is_timed_without_the_launch() -> None:
    device = FakeDevice()
    clock = EventClock(device, device.now)
    seconds = clock.seconds(lambda: device.issue(ISSUE_S, WORK_S), 10)
    assert seconds == pytest.approx(WORK_S)


@pytest.mark.parametrize("repeats", [1, 7])
def test_a_sample_makes_two_calls_more_and_nothing_waits_between_its_events(repeats: int) -> None:
    device = FakeDevice()
    EventClock(device, device.now).seconds(lambda: device.issue(ISSUE_S, WORK_S), repeats)
    kinds = [kind for kind in device.log if kind != "look"]
    warm_up, behind_hold = ["issue", "record", "wait"], ["hold", "issue"]
    assert kinds == [*warm_up, *behind_hold, "record", *["issue"] * repeats, "record", "wait"]


def test_a_host_that_falls_behind_is_given_more_time_in_later_samples() -> None:
    """The first call is the quickest here, so that the hold after it is too short."""
    device = FakeDevice()
    clock = EventClock(device, device.now)
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        device.issue(ISSUE_S if calls % 12 == 1 else 2 * ISSUE_S, WORK_S)

    found = [clock.seconds(call, 10) for _ in range(3)]
    assert found[0] > WORK_S
    assert found[1] == found[2] == pytest.approx(WORK_S)
    assert device.holds_s[1] == pytest.approx(2 * device.holds_s[0]) == pytest.approx(2 * HOLD * 11 * ISSUE_S)


def test_a_call_that_compiles_does_not_hold_the_device_for_as_long() -> None:
    device = FakeDevice()
    EventClock(device, device.now).seconds(lambda: device.issue(3.0, WORK_S), 1)
    assert device.holds_s == [0.25]


def test_the_hosts_part_of_a_call_ends_when_it_is_issued() -> None:
    device = FakeDevice()
    assert EventClock(device, device.now).issue_s(lambda: device.issue(ISSUE_S, 1.0)) == pytest.approx(
        ISSUE_S
    )
    assert device.now() > 1.0  # and the device is idle again


@pytest.mark.parametrize(("threads", "counted"), [(1, "thread_time"), (2, "perf_counter")])
def test_a_processors_clock_is_the_threads_own_unless_others_compute_too(
    threads: int, counted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([1.0, 7.0])
    monkeypatch.setattr(f"time.{counted}", lambda: next(ticks))
    assert HostClock(threads).seconds(lambda: None, 3) == 2.0
