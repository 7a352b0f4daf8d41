"""The native collectives, and lanes that replay, under the compiler's sanitizers."""

from __future__ import annotations

import subprocess

import pytest

from support.native_build import build_target, cmake


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(cmake() is None, reason="no CMake")
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_thousands_of_collectives_are_clean(sanitizers: str) -> None:
    program = (
        build_target("tokenweave", "stress_collectives", sanitizers)
        / "native"
        / "comm"
        / "stress_collectives"
    )
    for size, rounds in [(2, 4000), (3, 4000), (7, 500)]:
        run = subprocess.run([program, str(size), str(rounds)], capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        assert "WARNING" not in run.stderr
        assert run.stdout == "every result was right\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(cmake() is None, reason="no CMake")
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_lanes_that_replay_thousands_of_passes_are_clean(sanitizers: str) -> None:
    program = build_target("tokenweave", "stress_replay", sanitizers) / "native" / "replay" / "stress_replay"
    run = subprocess.run([program, "500"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    assert run.stdout == "every result was right\n"
