"""An engine takes as many threads as a container grants; each rank tells how much memory it had at most."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emucxl import resources
from emucxl.resources import Resources
from interlace.engine.config import EngineConfig
from interlace.engine.ranks import runner
from interlace.engine.ranks.connect import kernels_for

HOST = Resources(64, None, 256_000_000_000, None, 200_000_000_000, "", "")


@pytest.fixture
def grant(monkeypatch: pytest.MonkeyPatch) -> object:
    """`grant(cpu_quota_cores=1.5)`: what every later question is answered with."""

    def answer(**changes: object) -> None:
        monkeypatch.setattr(resources, "read", lambda root="": replace(HOST, **changes))

    return answer


@pytest.mark.parametrize(
    ("quota", "ranks", "threads"), [(1.0, 1, 1), (1.5, 2, 1), (6.0, 2, 3), (5.9, 2, 2), (0.2, 4, 1)]
)
def test_ranks_share_the_whole_cores_of_a_quota(
    grant: object, quota: float, ranks: int, threads: int
) -> None:
    grant(cpu_quota_cores=quota)  # type: ignore[operator]
    assert kernels_for(EngineConfig("model", kernels="reference"), ranks).threads == threads


def test_threads_that_are_asked_for_are_given(grant: object) -> None:
    grant(cpu_quota_cores=1.0)  # type: ignore[operator]
    assert kernels_for(EngineConfig("model", kernels="reference", threads=3), 1).threads == 3


def test_peak_memory_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise FileNotFoundError

    with_proc = runner.peak_memory_bytes()
    monkeypatch.setattr("builtins.open", missing)
    assert runner.peak_memory_bytes() >= with_proc // 2
