"""Every Python program of examples/memory runs, and prints what its documentation shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples" / "memory").glob("*.py"))
PAGE = ROOT / "docs" / "memory" / "python.md"
SHOWN = ("quickstart", "overlap", "tensors")


def run(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, path, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem not in SHOWN], ids=lambda path: path.stem
)
def test_an_example_runs(path: Path) -> None:
    assert run(path)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_prints_what_the_page_shows(name: str) -> None:
    shown = PAGE.read_text().partition(f"<!-- output: python examples/memory/{name}.py -->")[2]
    block = re.search(r"```text\n(.*?)```", shown, re.DOTALL)
    assert block is not None, "the output block is missing"
    assert run(ROOT / "examples" / "memory" / f"{name}.py") == block[1]


def test_the_copy_engine_runs_on_the_real_clock_too() -> None:
    printed = run(ROOT / "examples" / "memory" / "overlap.py", "real")
    times = [float(number) for number in re.findall(r"([\d.]+) ms", printed)]
    assert len(times) == 4
    assert times[2] >= 115, "fetching and computing take turns"
