"""The lines of `interlace doctor` about CUDA, with a torch.cuda that is made up."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.cuda_examination import examine_cuda
from tokenweave.communicators import available
from tokenweave.kernels.cuda import devices, multicast

DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (built)\nGCC version:"
)
MULTICAST = 132


@dataclass
class Properties:
    name: str = "NVIDIA H100 80GB HBM3"
    major: int = 9
    minor: int = 0
    multi_processor_count: int = 132


@dataclass
class FakeDriver:
    """As much of libcuda as is asked for."""

    has_multicast: tuple[bool, ...]
    asked: list[int] = field(default_factory=list)

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        assert attribute == MULTICAST
        value._obj.value = self.has_multicast[device.value]
        return 0


Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """`machine(devices=2, ...)` makes this one look so."""

    def make(
        num_devices: int = 0,
        separate: tuple[tuple[int, int], ...] = (),
        has_multicast: bool = True,
        driver: str | None = DRIVER,
        built_for: str | None = "13.0",
        capability: tuple[int, int] = (9, 0),
    ) -> None:
        file = tmp_path / "version"
        if driver is not None:
            file.write_text(driver)
        load, fake = ctypes.CDLL, FakeDriver((has_multicast,) * num_devices)
        for name, value in {
            "torch.cuda.is_available": lambda: num_devices > 0,
            "torch.cuda.device_count": lambda: num_devices,
            "torch.cuda.get_device_properties": lambda index: Properties(
                major=capability[0], minor=capability[1]
            ),
            "torch.cuda.get_device_capability": lambda: capability,
            "torch.cuda.mem_get_info": lambda index: (79_100_000_000, 85_000_000_000),
            "torch.cuda.can_device_access_peer": lambda one, two: (
                (one, two) not in separate and (two, one) not in separate
            ),
            "torch.cuda.init": lambda: None,
            "torch.version.cuda": built_for,
            "torch.version.hip": None,
        }.items():
            monkeypatch.setattr(name, value)
        monkeypatch.setattr(devices, "DRIVER_FILE", file)
        monkeypatch.setattr(
            "ctypes.CDLL", lambda name, *more: fake if name == "libcuda.so.1" else load(name, *more)
        )
        monkeypatch.setattr(available, "_triton_version", lambda: "3.6.0")

    return make


def test_devices_versions_and_what_ranks_would_use_are_told(machine: Machine) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    machine(2)
    found = examine_cuda()
    assert found.pop("devices")[1] == {
        "index": 1,
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "num_sms": 132,
        "total_bytes": 85_000_000_000,
        "free_bytes": 79_100_000_000,
        "has_multicast": True,
    }
    assert found == {
        "driver": "580.65.06, takes CUDA up to 13.2",
        "torch": "built for CUDA 13.0",
        "kernels": "available",
        "peers": "all reach each other",
        "multicast": "available",
        "between ranks": "symm_mem: all devices reach each other's memory",
    }


def test_peers_that_do_not_reach_each_other_and_a_missing_switch_are_named(machine: Machine) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    machine(3, separate=((0, 2), (1, 2)), has_multicast=False)
    found = examine_cuda()
    assert found["peers"] == "0 and 2, 1 and 2 do not reach each other"
    assert found["between ranks"] == "nccl: devices 0 and 2, 1 and 2 do not reach each other's memory"
    assert found["multicast"] == "not on 0, 1, 2"


def test_where_the_kernels_cannot_run_the_reason_is_told_and_nccl_joins_the_ranks(machine: Machine) -> None:
    machine(2, capability=(7, 5))
    found = examine_cuda()
    assert found["kernels"].startswith("unavailable: ")
    assert found["between ranks"].startswith("nccl: ")


def test_one_device_needs_no_communicator(machine: Machine) -> None:
    machine(1)
    found = examine_cuda()
    assert (found["peers"], found["between ranks"]) == ("none: there is one device", "not needed")


def test_a_driver_that_cannot_be_asked_has_no_multicast(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1, driver=None)

    def refuse(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", refuse)
    found = examine_cuda()
    assert not multicast.is_supported(0)
    assert found["multicast"] == "not on 0"
    assert found["driver"] == "unknown, takes CUDA up to unknown"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"driver": None, "built_for": None},
            "none: there is no CUDA device (this torch is built for CPUs only); to use a GPU, install NVIDIA's driver "
            "and a torch built for CUDA",
        ),
        (
            {"driver": None},
            "none: there is no CUDA device (this torch is built for CUDA 13.0); to use a GPU, install NVIDIA's driver",
        ),
        (
            {"built_for": None},
            "none: there is no CUDA device (this torch is built for CPUs only); NVIDIA's driver 580.65.06 is here: "
            "install a torch built for CUDA",
        ),
        (
            {},
            "none: there is no CUDA device (this torch is built for CUDA 13.0); NVIDIA's driver is 580.65.06: see what "
            "nvidia-smi lists, and whether CUDA_VISIBLE_DEVICES hides it",
        ),
    ],
)
def test_without_a_device_one_line_says_why_and_what_to_do(
    machine: Machine, changed: dict[str, Any], said: str
) -> None:
    machine(**changed)
    assert examine_cuda() == {"devices": said}


def test_the_command_prints_a_line_for_each_device(invoke: Any, machine: Machine) -> None:
    machine(2)
    text = invoke("doctor").stdout
    for index in (0, 1):
        told = "NVIDIA H100 80GB HBM3, compute capability 9.0, 132 SMs, 79.10 GB of 85.00 GB free"
        assert f"  device {index:<9} {told}\n" in text
    report = json.loads(invoke("doctor", "--json").stdout)
    assert [device["num_sms"] for device in report["cuda"]["devices"]] == [132, 132]
