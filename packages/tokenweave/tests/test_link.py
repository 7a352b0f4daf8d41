"""LinkSpec: what a person may write, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokenweave.errors import CommunicatorError
from tokenweave.link import LinkSpec


@pytest.mark.parametrize(
    ("text", "bandwidth_gbps", "latency_ns"),
    [
        ("0.25GB/s,5us", 0.25, 5000),
        ("250MB/s,5us", 0.25, 5000),
        ("900GB/s,0ns", 900, 0),
        ("1GB/s,1.5ms", 1, 1.5e6),
    ],
)
def test_a_link_is_a_bandwidth_and_a_latency(text: str, bandwidth_gbps: float, latency_ns: float) -> None:
    assert LinkSpec.parse(text) == LinkSpec(bandwidth_gbps, latency_ns)


@pytest.mark.parametrize("text", ["0.25GB/s,5us", "2GB/s,0ns", "0.001GB/s,2.5ms", "12.5GB/s,800ns"])
def test_a_link_is_written_as_it_is_read(text: str) -> None:
    assert str(LinkSpec.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "0.25GB/s", "5us", "0.25,5us", "0.25GB/s,5", "0.25 GB/s,5us", "0.25GB/s, 5us", "2Gb/s,5us",
        "2Gbit/s,5us", "-1GB/s,5us", "1e3GB/s,5us", "nanGB/s,5us", ".5GB/s,5us", "1GB/s,5us,bus", "1GB/s,5us\n",
        "١GB/s,5us",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(
        CommunicatorError, match=r"expected a bandwidth and a latency, such as '0.25GB/s,5us'"
    ):
        LinkSpec.parse(text)


@pytest.mark.parametrize("text", ["0GB/s,5us", "0.1MB/s,5us", "200000GB/s,5us", "1GB/s,20000ms"])
def test_figures_that_cannot_be_modelled_are_refused(text: str) -> None:
    with pytest.raises(CommunicatorError, match=r"got a link .*; expected \S+ to \S+"):
        LinkSpec.parse(text)


def test_a_port_queues_each_direction_apart() -> None:
    with LinkSpec.parse("0.5GB/s,3us").new_port() as port:
        assert port.config.latency_ns == 3000
        assert port.reserve("write", 1000, 0) == 2000
        assert port.reserve("read", 1000, 0) == 2000
        assert port.reserve("write", 1000, 0) == 4000


def test_a_launcher_reads_a_link_without_torch() -> None:
    code = (
        "import sys; from tokenweave.link import LinkSpec; LinkSpec.parse('1GB/s,5us').new_port().close();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
