"""Where an engine computes: what was asked for, what is there, and what is said where the two differ."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace.engine.config import EngineConfig
from interlace.engine.ranks import device
from interlace.engine.ranks.connect import kernels_for
from interlace.engine.ranks.device import device_of_rank, resolve_device
from interlace.engine.ranks.launch import start
from interlace.errors import EngineError
from tokenweave.kernels.cuda import available

Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """`host(has_driver, reason)`: one with a GPU's driver or none, whose kernels cannot run for a reason or None."""

    def make(has_driver: bool, reason: str | None = None, hidden: str | None = None) -> None:
        monkeypatch.setattr(device, "DRIVER_FILES", (str(tmp_path if has_driver else tmp_path / "none"),))
        monkeypatch.setattr(available, "unavailable_reason", lambda: reason)
        if hidden is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)

    return make


def test_auto_is_a_gpu_where_there_is_one(host: Host) -> None:
    host(has_driver=True)
    assert resolve_device(EngineConfig("smollm2")) == "cuda"
    assert resolve_device(EngineConfig("smollm2", device="cpu")) == "cpu"


def test_auto_is_the_cpu_without_a_gpu_and_says_nothing(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host(has_driver=False, reason="none is there")
    assert resolve_device(EngineConfig("smollm2")) == "cpu"
    for hidden in ("", "-1"):
        host(has_driver=True, reason="it is hidden", hidden=hidden)
        assert resolve_device(EngineConfig("smollm2")) == "cpu"
    assert not caplog.records


def test_a_gpu_that_cannot_be_used_is_told(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host(has_driver=True, reason="triton is too old")
    with caplog.at_level(logging.WARNING, logger="interlace"):
        assert resolve_device(EngineConfig("smollm2")) == "cpu"
    assert "has a GPU that cannot be used: triton is too old" in caplog.text


@pytest.mark.parametrize(
    "options", [{"kernels": "native"}, {"communicator": "shm", "tp": 2}, {"link": "1GB/s,5us", "tp": 2}]
)
def test_options_of_cpus_alone_choose_the_cpu(host: Host, options: dict[str, Any]) -> None:
    host(has_driver=True)
    assert resolve_device(EngineConfig("smollm2", **options)) == "cpu"
    with pytest.raises(EngineError, match="with device='cuda'"):
        EngineConfig("smollm2", device="cuda", **options)


def test_cuda_that_cannot_be_had_is_an_error_with_the_reason(host: Host) -> None:
    host(has_driver=True, reason="triton is too old")
    with pytest.raises(EngineError, match="device='cuda'; it cannot be had here: triton is too old; or set"):
        start(EngineConfig("smollm2", device="cuda"))


def test_reference_kernels_need_no_triton(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host(has_driver=True, reason="triton is not installed")
    monkeypatch.setattr(available, "device_reason", lambda: None)
    assert resolve_device(EngineConfig("smollm2", kernels="reference")) == "cuda"


def test_ranks_have_a_gpu_each_or_share_what_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of_rank(rank).index for rank in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(("named", "taken"), [("auto", "cuda"), ("reference", "reference")])
def test_a_rank_of_a_gpu_has_its_kernels_there(
    monkeypatch: pytest.MonkeyPatch, named: str, taken: str
) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr(
        "interlace.engine.ranks.connect.make_kernels", lambda *arguments: made.append(arguments)
    )
    kernels_for(
        EngineConfig("smollm2", device="cuda", kernels=named, threads=1), ranks_on_host=4, local_rank=3
    )
    assert made == [(taken, 1, torch.device("cuda", 3))]
