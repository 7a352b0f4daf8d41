"""The timing model on the virtual clock, against the formula in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

import emucxl
from emucxl.calibration import Calibration
from emucxl.errors import ArgumentError, NotFoundError, TooFastError
from emucxl.links import Link
from emucxl.presets import preset, presets
from emucxl.providers import Null
from emucxl.timing import CurvePoint, Timing

MIB = 1 << 20
WINDOW_NS = 100_000


@dataclass
class Lane:
    """One queue, as the model describes it: 32 bits of fraction are carried from transfer to transfer."""

    bandwidth_gbps: float
    free_ns: int = 0
    fraction: int = 0
    busy: list[tuple[int, int]] = field(default_factory=list)

    def reserve(self, size_bytes: int, now_ns: int) -> int:
        if not self.bandwidth_gbps:
            return now_ns
        cost = math.ceil(2**32 / self.bandwidth_gbps) * size_bytes + self.fraction
        self.fraction = cost % 2**32
        start_ns = max(now_ns, self.free_ns)
        self.free_ns = start_ns + (cost >> 32)
        self.busy.append((start_ns, self.free_ns))
        return self.free_ns

    def utilisation(self, now_ns: int) -> float:
        """Of the window that `now_ns` lies in and the one before it."""
        if self.free_ns - now_ns >= WINDOW_NS:
            return 1.0
        since_ns = (now_ns // WINDOW_NS - 1) * WINDOW_NS
        busy_ns = sum(max(0, min(end, now_ns) - max(begin, since_ns)) for begin, end in self.busy)
        return min(1.0, busy_ns / (now_ns - since_ns))


@pytest.fixture
def context() -> Iterator[emucxl.Context]:
    with emucxl.Context("virtual") as opened:
        yield opened


def elapsed(context: emucxl.Context, call: object) -> int:
    before_ns = context.now_ns
    call()  # type: ignore[operator]
    return context.now_ns - before_ns


bandwidths = st.floats(min_value=0.01, max_value=500)
latencies = st.integers(min_value=0, max_value=50_000)
steps = st.lists(
    st.tuples(st.sampled_from(["read", "write", "advance"]), st.integers(min_value=1, max_value=200_000)),
    min_size=1,
    max_size=40,
)


@given(read_ns=latencies, write_ns=latencies, read_gbps=bandwidths, write_gbps=bandwidths, steps=steps)
def test_any_sequence_of_accesses_takes_what_the_formula_says(
    read_ns: int, write_ns: int, read_gbps: float, write_gbps: float, steps: list[tuple[str, int]]
) -> None:
    latency = {"read": read_ns, "write": write_ns}
    lanes = {"read": Lane(read_gbps), "write": Lane(write_gbps)}
    now_ns = 0
    with emucxl.Context("virtual") as context:
        tier = context.add_tier("far", MIB, Null(), Timing(read_ns, write_ns, read_gbps, write_gbps))
        buffer = tier.alloc(MIB // 2)
        for what, amount in steps:
            if what == "advance":
                context.advance(amount)
                now_ns += amount
            else:
                _access(buffer, what, amount)
                now_ns = max(now_ns, lanes[what].reserve(amount, now_ns) + latency[what])
            assert context.now_ns == now_ns
        buffer.free()


def _access(buffer: emucxl.Buffer, what: str, size_bytes: int) -> None:
    if what == "read":
        buffer.read(size_bytes)
    else:
        buffer.fill(1, 0, size_bytes)


@given(data=st.data(), gbps=bandwidths, base_ns=st.integers(100, 5000))
def test_the_load_curve_is_read_at_the_utilisation_of_the_recent_past(
    data: st.DataObject, gbps: float, base_ns: int
) -> None:
    timing = Timing(
        base_ns, 0, gbps, curve=[CurvePoint(0.1, 1.0), CurvePoint(0.5, 2.0), CurvePoint(0.9, 7.0)]
    )
    lane, now_ns = Lane(gbps), 0
    with emucxl.Context("virtual") as context:
        buffer = context.add_tier("far", MIB, Null(), timing).alloc(MIB // 2)
        for size, gap_ns in data.draw(
            st.lists(st.tuples(st.integers(1, 200_000), st.integers(0, 150_000)), min_size=1, max_size=25)
        ):
            context.advance(gap_ns)
            now_ns += gap_ns
            factor = timing.latency_factor(lane.utilisation(now_ns))
            expected_ns = lane.reserve(size, now_ns) + base_ns * factor
            buffer.read(size)
            now_ns = context.now_ns
            assert now_ns == pytest.approx(expected_ns, abs=1 + 6 * base_ns * 2 / WINDOW_NS)
        buffer.free()


def test_many_small_transfers_add_up_to_the_bandwidth() -> None:
    with Link.create(3) as link:
        for _ in range(10_000):
            end_ns = link.reserve("read", 1, 0)
        assert end_ns == 3333  # a third of a nanosecond each
        assert link.stats().read_busy_ns == 3333


def test_each_switch_on_the_way_adds_its_hop(context: emucxl.Context) -> None:
    tier = context.add_tier("pool", MIB, timing=Timing(300, 200, hop_latency_ns=70, switch_hops=3))
    buffer = tier.alloc(64)
    assert elapsed(context, lambda: buffer.read(64)) == 300 + 3 * 70
    assert elapsed(context, lambda: buffer.write(b"x")) == 200 + 3 * 70
    buffer.free()


def test_a_batch_pays_each_latency_once_and_its_bytes_add_up(context: emucxl.Context) -> None:
    slow = context.add_tier("slow", MIB, timing=Timing(1000, 1000, 1, 1)).alloc(4096)
    fast = context.add_tier("fast", MIB, timing=Timing(100, 100, 4, 4)).alloc(4096)
    targets = [bytearray(1000) for _ in range(4)]
    batch = [(slow, 0, targets[0]), (fast, 0, targets[1]), (slow, 1000, targets[2]), (fast, 2000, targets[3])]
    assert elapsed(context, lambda: context.read_batch(batch)) == 2000 + 1000
    slow.free()
    fast.free()


def test_a_copy_takes_the_longer_of_its_read_and_its_write(context: emucxl.Context) -> None:
    source = context.add_tier("source", MIB, timing=Timing(1000, 1, 10, 10)).alloc(100_000)
    target = context.add_tier("target", MIB, timing=Timing(1, 500, 1, 1)).alloc(100_000)
    assert elapsed(context, lambda: target.copy_from(source)) == 100_000 + 500
    assert elapsed(context, lambda: source.copy_from(target)) == 100_000 + 1
    source.free()
    target.free()


def test_unmodelled_tiers_cost_no_modelled_time(context: emucxl.Context) -> None:
    buffer = context.add_tier("local", MIB).alloc(4096)
    assert elapsed(context, lambda: buffer.write(bytes(4096))) == 0
    buffer.free()


@pytest.mark.parametrize(
    "wrong",
    [
        {"read_latency_ns": -1},
        {"write_latency_ns": float("nan")},
        {"read_bandwidth_gbps": -1},
        {"write_bandwidth_gbps": 1e-9},
        {"hop_latency_ns": float("inf")},
        {"switch_hops": 1.5},
        {"switch_hops": 65},
        {"read_latency_ns": "100"},
        {"read_latency_ns": True},
        {"curve": [CurvePoint(0.5, 2), CurvePoint(0.5, 3)]},
        {"curve": [CurvePoint(0.5, 2), CurvePoint(0.6, 1.5)]},
        {"curve": [CurvePoint(i / 10, 1) for i in range(9)]},
    ],
)
def test_senseless_timings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        Timing(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("utilisation", "factor"), [(-0.1, 1), (1.1, 2), (0.5, 0.9), (0.5, float("inf"))])
def test_senseless_points_of_a_curve_are_refused(utilisation: float, factor: float) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        CurvePoint(utilisation, factor)


def test_the_core_refuses_what_python_would() -> None:
    raw = Timing(100).to_abi()
    raw.curve[0].latency_factor, raw.num_curve_points = 0.5, 1
    from emucxl import abi, native

    calibration = CALIBRATION.to_abi()
    with pytest.raises(ArgumentError, match="curve point"):
        native.check(abi.load().emx_check_timing(calibration, raw))


CALIBRATION = Calibration(200, 150, 10, 8, 20, 50_000, 60, num_cores=2)


@pytest.mark.parametrize(
    ("timing", "least"),
    [
        (Timing(199, 0), "read_latency_ns 199.*takes 200.*at least 201"),
        (Timing(0, 100), "write_latency_ns 100.*takes 150"),
        (Timing(0, 0, 20.5, 0), "read_bandwidth_gbps 20.50.*move 20.00"),
        (Timing(0, 0, 0, 17), "write_bandwidth_gbps 17.00.*move 16.00"),
    ],
)
def test_timings_faster_than_the_machine_are_refused(timing: Timing, least: str) -> None:
    with pytest.raises(TooFastError, match=least):
        CALIBRATION.check(timing)
    with (
        emucxl.Context(calibration=CALIBRATION) as context,
        pytest.raises(TooFastError, match=least),
    ):
        context.add_tier("far", MIB, timing=timing)


def test_hops_count_towards_what_the_machine_must_do() -> None:
    CALIBRATION.check(Timing(150, 150, 20, 16, hop_latency_ns=50, switch_hops=1))


def test_every_preset_can_be_modelled_and_tells_its_source(context: emucxl.Context) -> None:
    assert list(presets()) == ["local-ddr5", "cxl-direct", "cxl-switched", "rdma-far"]
    previous_ns = 0.0
    for name, found in presets().items():
        assert found.name == name
        assert found.source
        assert "Our choice" in found.note
        assert (found.url or "").startswith("https://")
        buffer = context.add_tier(name, MIB, timing=found).alloc(64)
        took_ns = elapsed(context, lambda buffer=buffer: buffer.read(64))
        assert took_ns >= found.timing.total_read_latency_ns > previous_ns
        previous_ns = found.timing.total_read_latency_ns
        buffer.free()


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match=r"'nearby'.*'cxl-direct'"):
        preset("nearby")
