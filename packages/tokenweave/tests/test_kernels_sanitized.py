"""The kernel tests over a library built with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.native_build import ROOT, build_target, cmake

SANITIZERS = "address,undefined"


def runtime(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kernel_tests_pass_under_the_sanitizers() -> None:
    if cmake() is None or shutil.which("gcc") is None:
        pytest.skip("no CMake or no gcc")
    environment = {
        **os.environ,
        "KERNEL_LIBRARY": str(build_target("tokenweave", "tokenweave", SANITIZERS) / "libtokenweave.so"),
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    tests = [
        str(Path(__file__).with_name(name))
        for name in (
            "test_kernels.py",
            "test_gated_linear.py",
            "test_kernels_invariance.py",
            "test_sampling.py",
            "test_stored_linear.py",
        )
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "support.sanitized_library",
        "-m",
        "not slow",
        *tests,
    ]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
