"""The command line of the benchmarks, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.command import app


@pytest.fixture
def invoke() -> Callable[..., Any]:
    """`invoke("fused", "--quick")`, as `make bench fused ARGS=--quick`."""
    runner = CliRunner()

    def run(*arguments: str) -> Any:
        return runner.invoke(app, list(arguments), prog_name="make bench")

    return run
