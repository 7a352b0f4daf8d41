"""The command where the packages that it needs are missing; the library does without them."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("run", ["runpy.run_module('emucxl', run_name='__main__')", "emucxl.command.main()"])
def test_a_package_that_the_command_lacks_is_named(run: str) -> None:
    program = f"import runpy, sys, emucxl.command; sys.modules['typer'] = None; {run}"
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("emucxl: the command needs typer: pip install ")
    assert done.stderr.count("\n") == 1
