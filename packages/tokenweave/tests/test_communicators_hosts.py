"""The torch communicator as it is started in earnest: by torchrun, and across hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.namespaces import NetworkHost, torchrun_variables
from support.rank_groups import free_port

RANK = Path(__file__).parents[3] / "tests" / "support" / "torch_rank.py"
PORT = 29400


def printed(process: subprocess.Popen[str]) -> object:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def start_on(hosts: tuple[NetworkHost, NetworkHost], mode: str) -> list[subprocess.Popen[str]]:
    return [
        host.start(
            [sys.executable, str(RANK), mode],
            torchrun_variables(rank, 2, hosts[0], PORT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for rank, host in enumerate(hosts)
    ]


@pytest.mark.slow
def test_two_hosts_sum_over_their_cable(two_hosts: tuple[NetworkHost, NetworkHost]) -> None:
    processes = start_on(two_hosts, "once")
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [json.loads(output) for output in outputs] == [[[3.0], 100_000, [0, 1]]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_host_is_noticed_on_the_other(
    two_hosts: tuple[NetworkHost, NetworkHost], victim: int
) -> None:
    processes = start_on(two_hosts, "wait")
    try:
        for process in processes:
            assert printed(process) == [[3.0], 100_000, [0, 1]]
        survivor = processes[1 - victim]
        processes[victim].kill()
        if victim == 1:
            survivor.stdin.write("go\n")  # type: ignore[union-attr]
            survivor.stdin.flush()  # type: ignore[union-attr]
            survivor.wait(100)  # a root need not notice, yet must not hang
        else:
            assert printed(survivor) == victim
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_torchrun_starts_a_group() -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    ]
    run = subprocess.run([*torchrun, str(RANK), "once"], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert "".join(run.stdout.split()) == "[[3.0],100000,[0,1]]" * 2  # the ranks' line ends may mingle
