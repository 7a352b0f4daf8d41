"""Timings: what accesses to a tier are modelled to cost.

An access of `size` bytes that begins at `now` ends at

    max over its queues of (max(now, queue is free) + size / bandwidth)
        + latency * curve(utilisation) + switch_hops * hop_latency + the link's latency

Bandwidths are in gigabytes (1e9 bytes) per second. See docs/memory/timing.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from emucxl import abi
from emucxl.arguments import instance
from emucxl.errors import ArgumentError

LEAST_BANDWIDTH_GBPS, MOST_BANDWIDTH_GBPS = 1e-3, 1e5
MOST_LATENCY_NS = 1e10
MOST_HOPS = 64


@dataclass(frozen=True)
class CurvePoint:
    """At `utilisation` (0 to 1) of the busiest queue, latency is multiplied by `latency_factor` (at least 1)."""

    utilisation: float
    latency_factor: float

    def __post_init__(self) -> None:
        check_number("utilisation", self.utilisation, 0, 1)
        check_number("latency_factor", self.latency_factor, 1, 1e6)


@dataclass(frozen=True)
class Timing:
    """The timing of a tier.

    Raises:
        ArgumentError: a figure is out of its range, or the curve does not ascend.
    """

    read_latency_ns: float = 0.0
    """Of one small access, unloaded, all included; 0: the machine's own."""
    write_latency_ns: float = 0.0
    read_bandwidth_gbps: float = 0.0
    """Of the tier's own queue for reads; 0: unlimited."""
    write_bandwidth_gbps: float = 0.0
    hop_latency_ns: float = 0.0
    """Added once for each switch on the way."""
    switch_hops: int = 0
    curve: Sequence[CurvePoint] = ()
    """The load curve: up to 8 points that ascend; interpolated between them, flat outside."""

    def __post_init__(self) -> None:
        for name in ("read_latency_ns", "write_latency_ns", "hop_latency_ns"):
            check_number(name, getattr(self, name), 0, MOST_LATENCY_NS)
        for name in ("read_bandwidth_gbps", "write_bandwidth_gbps"):
            check_bandwidth(name, getattr(self, name), may_be_zero=True)
        if not isinstance(self.switch_hops, int) or not 0 <= self.switch_hops <= MOST_HOPS:
            raise ArgumentError(
                f"got switch_hops={self.switch_hops!r}; expected a whole number, 0 to {MOST_HOPS}"
            )
        instance("curve", self.curve, Sequence, "a sequence of CurvePoint")
        object.__setattr__(self, "curve", tuple(self.curve))
        _check_curve(self.curve)

    @property
    def total_read_latency_ns(self) -> float:
        """With the switches, unloaded."""
        return self.read_latency_ns + self.switch_hops * self.hop_latency_ns

    @property
    def total_write_latency_ns(self) -> float:
        """With the switches, unloaded."""
        return self.write_latency_ns + self.switch_hops * self.hop_latency_ns

    def latency_factor(self, utilisation: float) -> float:
        """By what latency is multiplied when the busiest queue is that busy."""
        points = self.curve
        if not points:
            return 1.0
        if utilisation <= points[0].utilisation:
            return points[0].latency_factor
        for left, right in pairwise(points):
            if utilisation <= right.utilisation:
                along = (utilisation - left.utilisation) / (right.utilisation - left.utilisation)
                return left.latency_factor + along * (right.latency_factor - left.latency_factor)
        return points[-1].latency_factor

    def to_abi(self) -> abi.RawTiming:
        points = (abi.RawCurvePoint * abi.MAX_CURVE_POINTS)()
        for place, point in enumerate(self.curve):
            points[place] = abi.RawCurvePoint(point.utilisation, point.latency_factor)
        return abi.RawTiming(
            self.read_latency_ns,
            self.write_latency_ns,
            self.read_bandwidth_gbps,
            self.write_bandwidth_gbps,
            self.hop_latency_ns,
            self.switch_hops,
            len(self.curve),
            points,
        )


def check_number(name: str, value: float, least: float, most: float) -> None:
    """Raises ArgumentError unless `value` is a number from `least` to `most`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise ArgumentError(f"got {name}={value!r}; expected a number from {least:g} to {most:g}")


def check_bandwidth(name: str, value: float, may_be_zero: bool = False) -> None:
    """Raises ArgumentError unless `value` is a bandwidth that the model can carry."""
    if may_be_zero and value == 0:
        return
    check_number(name, value, LEAST_BANDWIDTH_GBPS, MOST_BANDWIDTH_GBPS)


def _check_curve(curve: Sequence[CurvePoint]) -> None:
    if len(curve) > abi.MAX_CURVE_POINTS:
        raise ArgumentError(f"got {len(curve)} curve points; expected at most {abi.MAX_CURVE_POINTS}")
    for point in curve:
        instance("point of the curve", point, CurvePoint, "a CurvePoint")
    for left, right in pairwise(curve):
        if right.utilisation <= left.utilisation or right.latency_factor < left.latency_factor:
            raise ArgumentError(
                f"got the curve points {left} and {right}; expected utilisations that ascend, and factors that "
                "do not fall"
            )
