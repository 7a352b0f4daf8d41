"""torchrun's variables."""

from __future__ import annotations

import os

import pytest

from tokenweave.environment import (
    TorchrunEnvironment,
    have_nccl_spare_the_process,
    torchrun_environment,
    torchrun_local_world_size,
    torchrun_world_size,
)
from tokenweave.errors import CommunicatorError

BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_variables_set_by_hand_are_enough() -> None:
    assert torchrun_environment(BY_HAND) == TorchrunEnvironment(1, 2, "10.0.0.1", 29500, False, 0)
    assert torchrun_world_size(BY_HAND) == 2


def test_torchrun_says_that_it_hosts_the_store_and_how_often_it_restarted() -> None:
    environment = torchrun_environment(
        {**BY_HAND, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3"}
    )
    assert environment.store_is_hosted
    assert environment.attempt == 3


@pytest.mark.parametrize("name", BY_HAND)
def test_a_missing_variable_is_named(name: str) -> None:
    variables = {key: value for key, value in BY_HAND.items() if key != name}
    with pytest.raises(CommunicatorError, match=f"{name} is not set; start the ranks with torchrun"):
        torchrun_environment(variables)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "one", "got RANK='one'; expected an integer"),
        ("RANK", "2", "expected 0 <= RANK < WORLD_SIZE"),
        ("MASTER_PORT", "0", "got MASTER_PORT=0; expected 1 to 65535"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(CommunicatorError, match=message):
        torchrun_environment({**BY_HAND, name: value})


def test_a_process_started_alone_is_in_no_group() -> None:
    assert torchrun_world_size({}) is None
    assert torchrun_world_size({"WORLD_SIZE": "2"}) is None


def test_the_ranks_of_this_host_are_known_where_torchrun_says_so() -> None:
    assert torchrun_local_world_size({"LOCAL_WORLD_SIZE": "4"}) == 4
    assert torchrun_local_world_size({}) == 1


def test_nccl_is_to_spare_the_process_unless_the_user_has_set_it_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handling, monitoring = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING"
    monkeypatch.setattr("os.environ", {handling: "1"})
    have_nccl_spare_the_process()
    assert (os.environ[handling], os.environ[monitoring]) == ("1", "0")
    monkeypatch.setattr("os.environ", {})
    have_nccl_spare_the_process()
    assert os.environ[handling] == "2"
