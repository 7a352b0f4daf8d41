"""The ring of examples/memory works under software coherence with all its flushes and invalidates, and fails without
any one of them: between two processes, in C and in Python."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.c_programs import compile_program, compiler

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "memory"
WHOLE = "1000 messages arrived whole and in order\n"

# The fault without it: bytes of another message, or a wait for an index that never moves.
STEPS = {
    "invalidate-head": "waited",
    "flush-message": "stale bytes in message 0",
    "flush-tail": "waited",
    "invalidate-tail": "waited",
    "invalidate-message": "stale bytes in message 8",
    "flush-head": "waited",
}

Run = Callable[[str, str, float], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", params=["c", "python"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the ring: mode, what to leave out, seconds to wait."""
    if request.param == "python":
        script = str(EXAMPLES / "coherent_queue.py")
        return lambda mode, left_out, timeout_s: execute(
            sys.executable, script, "--mode", mode, "--leave-out", left_out, "--timeout", str(timeout_s)
        )
    if compiler() is None:
        pytest.skip("there is no C compiler")
    program = str(compile_program(EXAMPLES / "coherent_queue.c", tmp_path_factory.mktemp("ring")))
    return lambda mode, left_out, timeout_s: execute(program, mode, left_out, str(timeout_s))


def execute(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("mode", "left_out"),
    [("software", "nothing"), ("hardware", "nothing"), ("hardware", "all"), ("uncached", "all")],
)
def test_the_ring_works(run: Run, mode: str, left_out: str) -> None:
    done = run(mode, left_out, 60)
    assert (done.returncode, done.stdout, done.stderr) == (0, WHOLE, "")


@pytest.mark.parametrize("step", STEPS)
def test_the_ring_fails_without_any_one_of_its_steps(run: Run, step: str) -> None:
    waits = STEPS[step] == "waited"
    done = run("software", step, 0.4 if waits else 60)
    assert (done.returncode, done.stdout) == (1, "")
    assert STEPS[step] in done.stderr


def test_the_ring_fails_with_no_steps_at_all(run: Run) -> None:
    done = run("software", "all", 0.4)
    assert (done.returncode, done.stdout) == (1, "")
    assert "waited 0.4 s for " in done.stderr


def documented() -> dict[str, list[str]]:
    """Returns what two hosts print without each step, as in docs/memory/coherence.md; the producer's line first."""
    text = (ROOT / "docs" / "memory" / "coherence.md").read_text()
    found = {}
    for step, *cells in re.findall(r"^\| `([a-z-]+)` \(.*?\) \|([^|]*)\|([^|]*)\|$", text, re.MULTILINE):
        said = zip(("producer", "consumer"), (cell.strip(" `") for cell in cells), strict=True)
        found[step] = [f"{host}: {words}" for host, words in said if words]
    return found


def test_every_step_is_documented() -> None:
    assert set(documented()) == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_the_hosts_say_what_the_documentation_says(step: str) -> None:
    """They wait for longer where a busy machine lets one of them run too late for the other."""
    script, said = str(EXAMPLES / "coherent_queue.py"), [""]
    for timeout_s in ("0.3", "3", "30"):
        done = execute(sys.executable, script, "--leave-out", step, "--timeout", timeout_s)
        said = done.stderr.replace(f"waited {timeout_s} s", "waited 0.3 s").splitlines()
        if said == documented()[step]:
            break
    assert said == documented()[step]
