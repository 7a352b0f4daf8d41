"""The native libraries: where they are not installed they are built in place, beside the sources, by CMake.

No stage needs them but those that say so; the description of the machine in the record says more with them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.findings import Finding, asked
from benchmarks.gpu.stage import StageJob
from emucxl import native as emucxl_native
from interlace.environment import subprocess_environment
from interlace.errors import BenchError
from tokenweave import native as tokenweave_native

LIBRARIES: dict[str, Callable[[], str | None]] = {
    "emucxl": emucxl_native.unavailable_reason,
    "tokenweave": tokenweave_native.unavailable_reason,
}


def run(job: StageJob) -> None:
    failed = []
    for name, unavailable_reason in LIBRARIES.items():
        reason = unavailable_reason()
        if reason is None:
            job.told.show(Finding(f"{name}'s library", "is there"))
            continue
        if job.options.is_dry_run:
            job.told.show(Finding(f"{name}'s library", f"would be built: {reason}"))
            continue
        began_s = time.perf_counter()
        try:
            build(Path(job.options.root), name)
            reason = unavailable_reason()
        except BenchError as error:
            reason = str(error)
        got = f"built in {time.perf_counter() - began_s:.0f} s" if reason is None else "not built"
        job.told.show(asked(f"{name}'s library", got, "loads", reason is None))
        failed += [] if reason is None else [f"{name}: {reason}"]
    if failed:
        raise BenchError("; ".join(failed))


def build(root: Path, name: str) -> None:
    """Builds the libraries of the package `name`, and puts them beside its sources, where it looks for them.

    Raises:
        BenchError: there is no CMake, or it failed; its last words.
    """
    environment = subprocess_environment()
    # The tools may be packages of this Python, whose programs are beside it.
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}:{Path(sys.executable).parent}"
    if shutil.which("cmake", path=environment["PATH"]) is None:
        raise BenchError("there is no cmake")
    package, built = root / "packages" / name, root / "build" / "gpu" / name
    ninja = ["-G", "Ninja"] if shutil.which("ninja", path=environment["PATH"]) else []
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython3_EXECUTABLE={sys.executable}"]
    say(environment, "cmake", "-S", package, "-B", built, *ninja, *options)
    say(environment, "cmake", "--build", built, "--parallel", len(os.sched_getaffinity(0)))
    say(environment, "cmake", "--install", built, "--prefix", package / "src")


def say(environment: dict[str, str], *words: object) -> None:
    """Runs a command, and prints what it prints.

    Raises:
        BenchError: it failed; with the last line that speaks of an error.
    """
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise BenchError(f"`{command[0]}` cannot be run: {error.strerror}") from None
    print(done.stdout)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower()] or lines or ["it printed nothing"]
        raise BenchError(f"`{' '.join(command[:2])}` failed: {telling[0]}")
