"""The `emucxl` command, run in this process, or as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from emucxl.cli.main import app


@pytest.fixture
def invoke() -> Callable[..., Any]:
    """`invoke("doctor", "--json")`, as typed."""
    runner = CliRunner()

    def run(*arguments: str) -> Any:
        return runner.invoke(app, list(arguments), prog_name="emucxl")

    return run


@pytest.fixture
def shell() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """`shell("$EMUCXL presets | head -1")`, in a shell, with no terminal."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        command = f"{sys.executable} -m emucxl"
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line.replace('$EMUCXL', command)}"],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    return run
