"""Compiles C programs together with emucxl's core, under a sanitizer, as the tests of the core need them.

The core's objects are compiled once per sanitizer and session; a program takes a link and one compilation.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
PROGRAMS = ROOT / "tests" / "native" / "emucxl"
FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-fno-omit-frame-pointer", "-D_GNU_SOURCE")
INCLUDES = (f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}")
LIBRARIES = ("-lpthread", "-lm")
WHOLE_CORE = ("*.c", "prim/*.c")

# A report ends the program, and so fails the test. Timeouts are the caller's.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=99",
}


def compiler() -> str | None:
    """The C compiler, or None where there is none."""
    return shutil.which(os.environ.get("CC", "cc"))


def compile_program(
    source: Path,
    tmp_path: Path,
    sanitize: str = "address,undefined",
    flags: Sequence[str] = (),
    core: Sequence[str] = WHOLE_CORE,
) -> Path:
    """The program of `source` (one file, or a name in tests/native/emucxl), linked with the core.

    `sanitize` is what -fsanitize gets; "" compiles without. `flags` are for this program's own source alone. `core` are
    patterns below native/src, for programs that need less than all of it.
    """
    source = source if source.exists() else PROGRAMS / source
    program = tmp_path / "-".join([source.stem, *(sanitize.split(",") if sanitize else ["plain"])])
    archive = core_archive(sanitize, core)
    if not program.exists() or program.stat().st_mtime < max(map(_modified, (source, archive))):
        command = [*_command(sanitize), *flags, str(source), str(archive), *LIBRARIES]
        _run([*command, "-o", str(program)])
    return program


def link_library(directory: Path, sanitize: str) -> Path:
    """libemucxl.so of the whole core under `sanitize`, with libemucxl_bench.so beside it."""
    library, loops = directory / "libemucxl.so", directory / "libemucxl_bench.so"
    archive = ["-Wl,--whole-archive", str(core_archive(sanitize)), "-Wl,--no-whole-archive"]
    shared = [*_command(sanitize), "-shared", "-fPIC"]
    _run([*shared, "-Wl,-soname,libemucxl.so", *archive, *LIBRARIES, "-o", str(library)])
    sources = map(str, sorted((NATIVE / "bench").glob("*.c")))
    _run(
        [
            *shared,
            *sources,
            f"-L{directory}",
            "-lemucxl",
            "-ldl",
            "-Wl,-rpath,$ORIGIN",
            *LIBRARIES,
            "-o",
            str(loops),
        ]
    )
    return library


def sanitizer_runtime(sanitize: str) -> str | None:
    """What a program that was not built with `sanitize` must preload to load a library that was; None if it is missing.

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
    """What the program printed; AssertionError with its output if it failed."""
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


def core_archive(sanitize: str, core: Sequence[str] = WHOLE_CORE) -> Path:
    """The core's objects under `sanitize`, compiled where this session has not done so yet.

    An archive: a program links what it uses, and may bring its own stand-in for the rest.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = list(threads.map(lambda source: _object_of(source, sanitize), _sources(core)))
    key = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:16]
    archive = _objects_directory() / f"core-{key}.a"
    if not archive.exists():
        _run(["ar", "rcs", str(archive), *map(str, objects)])
    return archive


def _sources(patterns: Sequence[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in (NATIVE / "src").glob(pattern))


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _object_of(source: Path, sanitize: str) -> Path:
    # Keyed by the headers too, so that a session that outlives an edit compiles again.
    headers = [*(NATIVE / "include").rglob("*.h"), *(NATIVE / "src").rglob("*.h")]
    stamp = ",".join(f"{path}:{path.stat().st_mtime_ns}" for path in sorted([source, *headers]))
    key = hashlib.sha256(f"{sanitize};{stamp}".encode()).hexdigest()[:16]
    target = _objects_directory() / f"{source.stem}-{key}.o"
    if not target.exists():
        unfinished = target.with_suffix(".partial")
        _run([*_command(sanitize), "-fPIC", "-c", str(source), "-o", str(unfinished)])
        unfinished.rename(target)
    return target


def _command(sanitize: str) -> list[str]:
    found = compiler()
    assert found is not None, "no C compiler: install one, or set CC"
    return [found, *FLAGS, *([f"-fsanitize={sanitize}"] if sanitize else []), *INCLUDES]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@cache
def _objects_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="emucxl-objects-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
