"""Compiles C programs together with emucxl's core, under a sanitizer, as the tests of the core need them.

CMake builds the core, once for each sanitizer and session; a program takes a link and one compilation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.native_build import ROOT, build_target, cmake

NATIVE = ROOT / "packages" / "emucxl" / "native"
PROGRAMS = ROOT / "packages" / "emucxl" / "tests" / "native"
FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-fno-omit-frame-pointer", "-D_GNU_SOURCE")
INCLUDES = (f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}")
LIBRARIES = ("-lpthread", "-lm")

# A report ends the program, and so fails the test. Timeouts are the caller's.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=99",
}


def compiler() -> str | None:
    """The C compiler, or None where it or CMake is missing."""
    return shutil.which(os.environ.get("CC", "cc")) if cmake() is not None else None


def compile_program(
    source: Path,
    tmp_path: Path,
    sanitize: str = "address,undefined",
    flags: Sequence[str] = (),
    core_flags: str = "",
) -> Path:
    """The program of `source` (a path, or a file or folder in packages/emucxl/tests/native), linked with the core.

    `sanitize` is what -fsanitize gets; "" compiles without. `flags` are for this program's own source alone,
    `core_flags` for the core's too.
    """
    source = source if source.exists() else PROGRAMS / source
    program = tmp_path / "-".join([source.stem, *(sanitize.split(",") if sanitize else ["plain"])])
    archive = core_archive(sanitize, core_flags)
    sources = sorted(source.glob("*.c")) if source.is_dir() else [source]
    if not program.exists() or program.stat().st_mtime < max(map(_modified, (*sources, archive))):
        own = (*flags, *core_flags.split(), *map(str, sources))
        command = [*_command(sanitize), f"-I{PROGRAMS}", *own, str(archive), *LIBRARIES]
        _run([*command, "-o", str(program)])
    return program


def link_library(directory: Path, sanitize: str) -> Path:
    """libemucxl.so of the whole core under `sanitize`."""
    built = build_target("emucxl", "emucxl", sanitize) / "native" / "src"
    return Path(shutil.copy(built / "libemucxl.so", directory))


def sanitizer_runtime(sanitize: str) -> str | None:
    """Returns the libraries to preload before a library that was built with `sanitize` is loaded; None if missing.

    The C++ library is part of it: the runtime looks up what it intercepts as the program starts.
    """
    runtime = {"address": "libasan.so", "thread": "libtsan.so"}[sanitize.split(",")[0]]
    found = [_library_of_compiler(name) for name in (runtime, "libstdc++.so.6")]
    return None if None in found else " ".join(map(str, found))


def _library_of_compiler(name: str) -> Path | None:
    found = compiler()
    if found is None:
        return None
    done = subprocess.run([found, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    path = Path(done.stdout.strip())
    return path.resolve() if path.is_absolute() else None


def run_program(program: Path, *arguments: object, timeout_s: float = 120.0) -> str:
    """Returns the program's output. Raises AssertionError, with that output, if it failed."""
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        env={**os.environ, **SANITIZER_OPTIONS},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{program.name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def core_archive(sanitize: str, core_flags: str = "") -> Path:
    """The core's objects under `sanitize`.

    An archive: a program links what it uses, and may bring its own stand-in for the rest.
    """
    return build_target("emucxl", "emucxl_core", sanitize, core_flags) / "native" / "src" / "libemucxl_core.a"


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _command(sanitize: str) -> list[str]:
    found = compiler()
    assert found is not None, "no C compiler: install one, or set CC"
    return [found, *FLAGS, *([f"-fsanitize={sanitize}"] if sanitize else []), *INCLUDES]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
