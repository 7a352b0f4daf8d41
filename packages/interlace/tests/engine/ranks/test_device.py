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
from interlace.engine.ranks.connect import connect_by_torch, kernels_for
from interlace.engine.ranks.device import check_each_has_one, device_of_rank, resolve_device
from interlace.engine.ranks.launch import resolve_communicator, start
from interlace.errors import EngineError
from tokenweave.environment import TorchrunEnvironment
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import make_kernels
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
    "options",
    [
        {"kernels": "native"},
        {"communicator": "shm", "tp": 2},
        {"link": "1GB/s,5us", "tp": 2},
        {"kv_tiers": ["cxl:1GB"]},
        {"weights_tier": "cxl:1GB"},
    ],
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


def test_communicators_of_gpus_choose_them_and_are_refused_on_cpus(host: Host) -> None:
    host(has_driver=False, reason="there is no CUDA device")
    for name in ("nccl", "symm_mem"):
        with pytest.raises(EngineError, match="got device='cuda'; it cannot be had here: there is no CUDA"):
            resolve_device(EngineConfig("smollm2", communicator=name, tp=2))
        with pytest.raises(EngineError, match="expected another with device='cpu': it joins ranks on GPUs"):
            EngineConfig("smollm2", device="cpu", communicator=name, tp=2)


@pytest.mark.parametrize(
    ("device", "named", "kind"),
    [
        ("cpu", "auto", "shm"),
        ("cuda", "auto", "torch"),
        ("cuda", "torch", "torch"),
        ("cuda", "nccl", "torch"),
        ("cuda", "symm_mem", "torch"),
        ("cuda", "thread", "thread"),
    ],
)
def test_ranks_on_gpus_are_processes_of_a_torch_group_unless_they_are_to_be_threads(
    device: str, named: str, kind: str
) -> None:
    assert resolve_communicator(EngineConfig("smollm2", device=device, communicator=named, tp=2)) == kind
    assert resolve_communicator(EngineConfig("smollm2", device=device, communicator=named)) == "null"


@pytest.mark.parametrize("named", ["auto", "nccl", "symm_mem"])
def test_under_torchrun_the_ranks_are_its_own(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve_communicator(EngineConfig("smollm2", device="cuda", communicator=named)) == "torchrun"


def test_more_ranks_than_gpus_are_an_error_that_says_what_to_do(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(has_driver=True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_each_has_one(2)
    with pytest.raises(EngineError) as refused:
        start(EngineConfig("smollm2", device="cuda", tp=4))
    assert str(refused.value) == (
        "got tp=4 on a host with 2 GPUs; each rank needs one of its own: set tp to at most 2, device to 'cpu', or "
        "communicator to 'thread', whose ranks share what there are"
    )
    monkeypatch.setenv("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", "1")
    check_each_has_one(4)


@pytest.mark.parametrize(("named", "choice"), [("auto", "auto"), ("torch", "nccl"), ("symm_mem", "symm_mem")])
def test_ranks_on_gpus_are_joined_as_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch, named: str, choice: str
) -> None:
    asked: list[dict[str, Any]] = []
    current: list[torch.device] = []
    config, where = (
        EngineConfig("smollm2", device="cuda", communicator=named),
        TorchrunEnvironment(1, 2, "h", 5),
    )

    def join(*arguments: Any, **options: Any) -> None:
        asked.append({"where": arguments[0], **options})

    def refuse(*arguments: Any, **options: Any) -> None:
        raise CommunicatorError("rank 1: triton is 3.4")

    monkeypatch.setattr("tokenweave.communicators.gpus.connect_gpus", join)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    kernels = make_kernels("reference")
    kernels.device = torch.device("cuda", 1)
    connect_by_torch(config, where, kernels, ranks_on_host=2)
    assert current == [kernels.device]
    expected = {"where": where, "choice": choice, "ranks_on_host": 2, "timeout_s": 60.0, "watch": None}
    assert asked == [expected]
    monkeypatch.setattr("tokenweave.communicators.gpus.connect_gpus", refuse)
    with pytest.raises(EngineError, match=f"got communicator='{named}': rank 1: triton is 3.4"):
        connect_by_torch(config, where, make_kernels("reference"), ranks_on_host=2)


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
