"""The worker process itself, with the limits worker standing for any system."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.worker import Worker, turn
from benchmarks.peers import start_command
from interlace.errors import BenchError
from support.patience import wait_until


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_running(pid: int) -> bool:
    """A zombie that its new parent has not collected yet runs no more."""
    try:
        return state_of(pid) not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(sys.executable, "limits")
    yield made
    made.close()


def test_a_worker_runs_in_its_turn_only_and_ends_when_closed(worker: Worker) -> None:
    pid = worker._process.pid
    worker.pause()
    wait_until(lambda: state_of(pid) == "T", "the worker's stop")
    with turn(worker), pytest.raises(BenchError, match=r"expected one of \['bandwidth', 'gemm', 'peak'\]"):
        worker.ask("sing")
    assert worker.memory_bytes() > 1e6
    worker.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_paused_system_dies_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    system = tmp_path / "python"  # like a peer that starts processes of its own
    system.write_text(
        f"#!/bin/sh\nsleep 60 &\necho $$ $! > {tmp_path}/pids.tmp\nmv {tmp_path}/pids.tmp {tmp_path}/pids\ncat\n"
    )
    system.chmod(0o755)
    driver = (
        "import time; from benchmarks.harness.worker import Worker;"
        f"w = Worker('{system}', 'any'); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", driver]) as process:
        wait_until((tmp_path / "pids").exists)
        pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
        os.killpg(pids[0], signal.SIGSTOP)
        process.kill()
    wait_until(lambda: not any(map(is_running, pids)), "the end of its processes")


def test_a_system_dies_with_a_driver_that_is_killed_while_it_starts_it(tmp_path: Path) -> None:
    system = tmp_path / "python"
    system.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.tmp\nmv {tmp_path}/pid.tmp {tmp_path}/pid\nexec cat\n"
    )
    system.chmod(0o755)
    driver = f"""
import os, signal, subprocess, time
from pathlib import Path
from benchmarks.harness.worker import Worker
start = subprocess.Popen.__init__
def start_and_be_killed(process, command, **options):
    start(process, command, **options)
    if command[0] == "{system}":
        while not Path("{tmp_path}/pid").exists():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)  # it would notice that its input has ended
        os.kill(os.getpid(), signal.SIGKILL)
subprocess.Popen.__init__ = start_and_be_killed
Worker("{system}", "any")
"""
    done = subprocess.run([sys.executable, "-c", driver])
    assert done.returncode == -signal.SIGKILL
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid), "the end of its system")


def test_a_system_that_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Worker(str(tmp_path / "nonesuch"), "any")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "sh\n"]


def test_a_dead_worker_is_an_error_with_its_last_words() -> None:
    worker = Worker(sys.executable, "no_such_system")
    with pytest.raises(BenchError, match=r"died .*No module named"):
        worker.ask("load")
    worker.close()


def test_a_killed_worker_is_an_error(worker: Worker) -> None:
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(BenchError, match="died of SIGKILL"):
        worker.ask("bandwidth", threads=1)


def test_a_worker_sees_nothing_of_this_environment_or_directory(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the current directory was imported from')")
    done = subprocess.run(
        start_command(sys.executable, "hf"),
        input='{"op": "sing"}\n',
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "got op 'sing'" in done.stdout, done.stderr
