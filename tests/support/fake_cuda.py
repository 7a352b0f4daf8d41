"""Fake CUDA: `CudaKernels` under Triton's interpreter, in a pytest of its own: Triton reads TRITON_INTERPRET only once.

This is the plugin of that run, and how it is started. `TRITON_INTERPRET=1 PYTHONPATH=tests pytest -p support.fake_cuda
FILE` does the same by hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def num_passed(*arguments: object) -> int:
    """Runs pytest under the interpreter. Returns how many tests passed; raises AssertionError if one failed."""
    found = re.search(r"(\d+) passed", run_interpreted(*map(str, arguments)))
    return int(found[1]) if found else 0


def run_interpreted(*arguments: str) -> str:
    """Returns what it printed; raises AssertionError with that if a test failed."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "support.fake_cuda",
            "-p",
            "no:cacheprovider",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter takes the largest score of a row by np.nanmax, which warns where all are NaN.
    config.addinivalue_line("filterwarnings", "ignore:All-NaN slice encountered:RuntimeWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of files that have tests of other things too, those over the fixture `kernels` are the contract."""
    items[:] = [
        item
        for item in items
        if not item.path.name.startswith("test_")
        or ("kernels" in getattr(item, "fixturenames", ()) and not repeats(item))
    ]
    for item in items:
        if takes_long(item):
            item.add_marker(pytest.mark.slow)


def repeats(item: pytest.Item) -> bool:
    """Whether a case is left out: attention's slow ones are those of other cases in the other dtype."""
    is_attention = getattr(item, "originalname", "") == "test_attention_equals_reference"
    return is_attention and item.get_closest_marker("slow") is not None


def takes_long(item: pytest.Item) -> bool:
    """Whether the interpreter takes seconds for a case of the contract: each program takes milliseconds."""
    case = item.callspec.params if hasattr(item, "callspec") else {}
    name = getattr(item, "originalname", "")
    if name == "test_attention_equals_reference":
        return case["heads"].num_heads != 5 or case["sliding_window"] != 37
    if name == "test_rope_rotates_q_as_the_reference":
        return case["heads"].num_heads == 60
    return case.get("m") == 400
