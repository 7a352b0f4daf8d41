"""How ranks on GPUs choose what joins them: alike on every rank, and with the reason where it is refused."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from support.patience import PATIENCE_S
from support.rank_groups import MakeRanks, Ranks
from support.rank_programs import expected_sum
from tokenweave.communicators import available, gpus
from tokenweave.environment import TorchrunEnvironment
from tokenweave.errors import CommunicatorError
from tokenweave.kernels import make_kernels
from tokenweave.kernels.cuda import devices

CUDA = torch.device("cuda", 0)
REACHED, APART = (
    ("symm_mem", "all reach each other"),
    ("nccl", "devices 0 and 1 do not reach each other's memory"),
)


def check_reductions(ranks: Ranks, name: str) -> None:
    for outcome in ranks.run("reduced_on_its_device", 300):
        assert not isinstance(outcome, Exception), outcome
        found, total, normed = outcome
        assert found == name
        torch.testing.assert_close(total, expected_sum(ranks.size, (300, 64), "float32"))
        torch.testing.assert_close(normed, torch.ones(300, 64))


def test_ranks_without_symmetric_memory_are_joined_without_it_and_told_why_where_it_is_asked_for(
    make: MakeRanks,
) -> None:
    """On CPUs, as under Triton's interpreter. The group that fails leaves nothing in the way of the next."""
    if torch.cuda.is_available():
        pytest.skip("it can be had here")
    with pytest.raises(CommunicatorError, match=r"symm_mem cannot be had: rank 0: .*there is no CUDA device"):
        make("gpus", 2, choice="symm_mem")
    check_reductions(make("gpus", 2), "torch")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
@pytest.mark.parametrize("choice", ["nccl", "auto"])
def test_ranks_on_gpus_are_joined(make: MakeRanks, choice: str) -> None:
    best, _ = available.between_gpus(2)
    check_reductions(make("gpus", 2, choice=choice, on_gpus=True), "nccl" if choice == "nccl" else best)


class Memory:
    """Stands for symmetric memory."""


@pytest.fixture
def rank_zero(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`rank_zero(choice, local, reason, words)`: rank 0 of two chooses. The other rank's words are given, by topic."""

    def choose(choice: str, local: tuple[str, str], reason: str, words: dict[str, str]) -> Any:
        monkeypatch.setattr(gpus, "between_gpus", lambda ranks_on_host: local)
        monkeypatch.setattr(gpus, "_try_memory", lambda device: (None if reason else Memory(), reason))
        monkeypatch.setattr("socket.gethostname", lambda: "here")
        told = {"hosts": "here", **words}
        return gpus._agree_on_memory(lambda topic, own: [own, told.get(topic, "")], choice, CUDA, 2)

    return choose


def test_symmetric_memory_is_taken_where_every_rank_has_it(rank_zero: Any) -> None:
    assert isinstance(rank_zero("auto", REACHED, "", {}), Memory)
    assert isinstance(rank_zero("symm_mem", REACHED, "", {}), Memory)


@pytest.mark.parametrize(
    ("local", "reason", "words", "told"),
    [
        (APART, "", {}, "rank 0: devices 0 and 1 do not reach each other's memory"),
        (REACHED, "", {"can have symmetric memory": "triton is 3.4"}, "rank 1: triton is 3.4"),
        (REACHED, "CUDA driver error", {}, "rank 0: CUDA driver error"),
        (REACHED, "", {"has symmetric memory": "CUDA driver error"}, "rank 1: CUDA driver error"),
    ],
)
def test_where_one_rank_cannot_have_it_none_takes_it(
    rank_zero: Any, local: tuple[str, str], reason: str, words: dict[str, str], told: str
) -> None:
    assert rank_zero("auto", local, reason, words) is None
    with pytest.raises(CommunicatorError) as refused:
        rank_zero("symm_mem", local, reason, words)
    assert str(refused.value) == f"symm_mem cannot be had: {told}; use auto, which is nccl then, or nccl"


def test_between_hosts_it_is_tried_only_where_it_is_asked_for(rank_zero: Any) -> None:
    assert rank_zero("auto", REACHED, "", {"hosts": "there"}) is None
    assert isinstance(rank_zero("symm_mem", REACHED, "", {"hosts": "there"}), Memory)


def test_every_rank_hears_every_word_in_rank_order() -> None:
    store, heard = HashStore(), {}

    def rank(number: int) -> None:
        where = TorchrunEnvironment(number, 3, "127.0.0.1", 1)
        ask = partial(gpus._exchange, store, where, PATIENCE_S, None)
        heard[number] = [ask(topic, f"{topic} of {number}") for topic in ("host", "device")]

    threads = [threading.Thread(target=rank, args=(number,)) for number in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    expected = [[f"{topic} of {number}" for number in range(3)] for topic in ("host", "device")]
    assert heard == dict.fromkeys(range(3), expected)


def test_ranks_that_have_one_gpu_are_named() -> None:
    where = TorchrunEnvironment(0, 3, "127.0.0.1", 1)
    gpus._check_devices(["a", "b", "c"], where)
    gpus._check_devices(["", "", ""], where)  # no GPUs at all: Triton is interpreted
    with pytest.raises(
        CommunicatorError, match="ranks 0 and 2 have one GPU, and nccl joins ranks that have one each"
    ):
        gpus._check_devices(["a", "b", "a"], where)


def test_a_choice_that_does_not_exist_is_refused_before_anybody_is_waited_for() -> None:
    where = TorchrunEnvironment(0, 2, "127.0.0.1", 1)
    with pytest.raises(CommunicatorError, match="got choice='mpi'; expected one of auto, nccl, symm_mem"):
        gpus.connect_gpus(where, make_kernels("reference"), choice="mpi", ranks_on_host=2)


def test_a_torch_without_nccl_says_so_before_anybody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: False)
    kernels, where = make_kernels("reference"), TorchrunEnvironment(1, 2, "127.0.0.1", 1)
    kernels.device = CUDA
    with pytest.raises(CommunicatorError, match="rank 1 cannot have nccl: this build of torch has no nccl"):
        gpus.connect_gpus(where, kernels, ranks_on_host=2)


def test_gpus_that_no_rank_is_on_need_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.can_device_access_peer", lambda one, two: one // 2 == two // 2)
    assert devices.separate_pairs(2) == ()
    assert len(devices.separate_pairs()) == 4
    assert devices.separate_pairs(8) == devices.separate_pairs()
