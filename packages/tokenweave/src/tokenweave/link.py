"""LinkSpec: the interconnect that is modelled between the ranks, as a person writes it: "0.25GB/s,5us".

Each rank has one port, full duplex, as NVLink and Ethernet ports are: what a rank sends queues apart from what it
receives, and ports do not share anything between them (a switch that never blocks). Imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emucxl.timing import LEAST_BANDWIDTH_GBPS, MOST_BANDWIDTH_GBPS, MOST_LATENCY_NS
from tokenweave.errors import CommunicatorError

if TYPE_CHECKING:
    from emucxl.links import Link

EXPECTED = "a bandwidth and a latency, such as '0.25GB/s,5us' (GB/s or MB/s; ns, us or ms)"
_PARTS = re.compile(r"(\d+(?:\.\d+)?)([GM]B/s),(\d+(?:\.\d+)?)(ns|us|ms)", re.ASCII)
_GBPS = {"GB/s": 1.0, "MB/s": 1e-3}
_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6}


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A port of each rank: so much each way at the same time, in 1e9 bytes per second, and a latency per exchange.

    Raises:
        CommunicatorError: a figure is out of its range.
    """

    bandwidth_gbps: float
    latency_ns: float = 0.0

    def __post_init__(self) -> None:
        if not LEAST_BANDWIDTH_GBPS <= self.bandwidth_gbps <= MOST_BANDWIDTH_GBPS:
            raise CommunicatorError(
                f"got a link of {self.bandwidth_gbps:g} GB/s; expected {LEAST_BANDWIDTH_GBPS:g} to "
                f"{MOST_BANDWIDTH_GBPS:g}"
            )
        if not 0 <= self.latency_ns <= MOST_LATENCY_NS:
            raise CommunicatorError(
                f"got a link latency of {self.latency_ns:g} ns; expected 0 to {MOST_LATENCY_NS:g}"
            )

    @classmethod
    def parse(cls, text: str) -> LinkSpec:
        """Reads `text`, e.g. "0.25GB/s,5us".

        Raises:
            CommunicatorError: it says something else.
        """
        found = _PARTS.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise CommunicatorError(f"got the link {text!r}; expected {EXPECTED}")
        bandwidth, bandwidth_unit, latency, latency_unit = found.groups()
        return cls(float(bandwidth) * _GBPS[bandwidth_unit], float(latency) * _NS[latency_unit])

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth_gbps * 1e9

    @property
    def latency_s(self) -> float:
        return self.latency_ns / 1e9

    def new_port(self) -> Link:
        """One rank's port. Its `fd` may be handed to that rank's process, and to whatever else uses the port."""
        from emucxl.links import Link

        return Link.create(self.bandwidth_gbps, latency_ns=self.latency_ns)

    def __str__(self) -> str:
        return f"{self.bandwidth_gbps:g}GB/s,{_latency(self.latency_ns)}"


def _latency(latency_ns: float) -> str:
    if latency_ns < 1e3:
        return f"{latency_ns:g}ns"
    return f"{latency_ns / 1e3:g}us" if latency_ns < 1e6 else f"{latency_ns / 1e6:g}ms"
