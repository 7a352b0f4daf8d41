"""Variables of torchrun that are left over are told at once."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.launch import resolve_communicator, start
from interlace.engine.ranks.torchrun import announce
from interlace.errors import EngineError
from tokenweave.environment import TorchrunEnvironment


@pytest.fixture
def port() -> Iterator[int]:
    """One that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_agent_that_has_ended_is_an_error_that_says_what_to_unset(port: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = probe.getsockname()[1]
    with pytest.raises(EngineError, match=r"RANK=1 and WORLD_SIZE=4.*left over.*unset RANK, WORLD_SIZE"):
        announce(TorchrunEnvironment(1, 4, "127.0.0.1", gone, store_is_hosted=True), 60.0)


def test_a_host_that_has_no_name_is_an_error_too() -> None:
    with pytest.raises(EngineError, match="left over"):
        announce(TorchrunEnvironment(0, 2, "nobody.invalid", 1, store_is_hosted=True), 60.0)


def test_beside_its_agent_nothing_is_said(port: int, caplog: pytest.LogCaptureFixture) -> None:
    announce(TorchrunEnvironment(0, 2, "127.0.0.1", port, store_is_hosted=True), 60.0)
    assert caplog.messages == []


def test_a_rank_that_was_started_by_hand_says_whom_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "interlace"):
        announce(TorchrunEnvironment(0, 2, "10.0.0.1", 29500), 60.0)
        announce(TorchrunEnvironment(1, 2, "10.0.0.1", 29500), 60.0)
    said, other = caplog.messages
    assert "RANK=1 and WORLD_SIZE=2" in other
    assert "RANK=0 and WORLD_SIZE=2" in said
    assert "waiting at 10.0.0.1:29500 for the others, up to 60 s" in said
    assert "unset RANK and WORLD_SIZE" in said


def test_an_engine_says_so_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**variables, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match="left over"):
        start(EngineConfig("no such model"))
    with pytest.raises(EngineError, match=r"tp=3 in a group of 2.*unset RANK and WORLD_SIZE"):
        resolve_communicator(EngineConfig("model", tp=3))
