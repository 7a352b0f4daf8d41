"""Builds the native code with CMake under a sanitizer. The list of sources is the build's own, not one of the tests.

A tree is configured once for each package, sanitizer, set of flags and session, and removed with the session.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def cmake() -> str | None:
    """CMake, of the environment or of the system; None where there is none."""
    return shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")


@cache
def build_target(package: str, target: str, sanitize: str, c_flags: str = "") -> Path:
    """Builds `target` of a package's native code, once a session. Returns the build tree.

    `sanitize` is what -fsanitize gets ("": none). `c_flags` are for every C source, such as a definition that
    compiles something in.
    """
    tree = _tree(package, sanitize, c_flags)
    _run("--build", str(tree), "--parallel", "2", "--target", target)
    return tree


@cache
def _tree(package: str, sanitize: str, c_flags: str) -> Path:
    tree = Path(tempfile.mkdtemp(prefix="native-build-"))
    atexit.register(shutil.rmtree, tree, ignore_errors=True)
    options = [f"-DSANITIZE={sanitize}", "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_C_FLAGS={c_flags}"]
    _run("-S", str(ROOT / "packages" / package), "-B", str(tree), *options)
    return tree


def _run(*arguments: str) -> None:
    found = cmake()
    assert found is not None, "no CMake: install it, or pip install cmake"
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"cmake {' '.join(arguments)}\n{done.stdout[-5000:]}{done.stderr[-5000:]}"
