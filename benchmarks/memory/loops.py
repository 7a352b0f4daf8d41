"""libemucxl_bench: the loops that benchmarks time without an interpreter in between. Built when first used.

CMake builds it from `native/` below the checkout's `build/`, against the libemucxl that this process has loaded.
"""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

from benchmarks.harness.processes import ROOT
from emucxl import native
from emucxl.errors import UnavailableError

SOURCE = Path(__file__).parent / "native"
TREE = ROOT / "build" / "benchmarks"
LIBRARY = "libemucxl_bench.so"


def declared(signatures: native.Signatures) -> ctypes.CDLL:
    """The library, with these of its calls declared.

    Raises:
        UnavailableError: it cannot be built or loaded.
    """
    library = _load()
    native.declare(library, signatures)
    return library


@cache
def _load() -> ctypes.CDLL:
    native.load()  # first, so that the loops find the very library that is being measured
    try:
        return ctypes.CDLL(str(build()))
    except OSError as error:
        raise UnavailableError(
            f"cannot load the benchmarks' loops: {error}; remove {TREE} and try again"
        ) from error


def build() -> Path:
    """Builds what has changed since the last time, and returns the library. Processes take turns.

    Raises:
        UnavailableError: there is no CMake, or the build fails.
    """
    cmake = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
    if cmake is None:
        raise UnavailableError("the benchmarks' loops in C need CMake: install it, or pip install cmake")
    TREE.mkdir(parents=True, exist_ok=True)
    with (TREE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(cmake, "-S", str(SOURCE), "-B", str(TREE), f"-DEMUCXL_LIBRARY={native.library_path()}")
        _run(cmake, "--build", str(TREE))
    return TREE / LIBRARY


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()[-2000:]
        raise UnavailableError(f"cannot build the benchmarks' loops; `{' '.join(command)}` says:\n{output}")
