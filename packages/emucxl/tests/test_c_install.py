"""C programmers get headers that compile alone, a library that exports nothing but its interface, and an install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from emucxl import __version__
from emucxl.native import library_path
from support.c_programs import compiler

ROOT = Path(__file__).parents[3]
INCLUDE = Path(__file__).parents[1] / "native" / "include"
EXAMPLES = ROOT / "examples" / "memory"
HEADERS = [INCLUDE / "emucxl.h", INCLUDE / "emucxl_lib.h", *sorted((INCLUDE / "emucxl").glob("*.h"))]
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@needs_compiler
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: str(header.relative_to(INCLUDE)))
@pytest.mark.parametrize("standard", ["c11", "c++17"])
def test_a_header_compiles_alone(header: Path, standard: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++" if "++" in standard else "cc")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source = tmp_path / ("alone.cpp" if "++" in standard else "alone.c")
    name = header.relative_to(INCLUDE)
    source.write_text(f"#include <{name}>\n#include <{name}>\nint main(void) {{ return 0; }}\n")
    run(compiler, f"-std={standard}", *STRICT, f"-I{INCLUDE}", source)


@needs_compiler
def test_a_program_may_repeat_the_published_names(tmp_path: Path) -> None:
    """The macros identically, before or after the header; the standard headers come with it."""
    names = "#define LOCAL_MEMORY 0\n#define REMOTE_MEMORY 1\n#define PAGE_SIZE 4096\n"
    use = (
        'int main(void) {\n  struct Key_value pair = {"key", 1, NULL}; Key_value *next = pair.next;\n'
        "  bool none = !next; size_t size = sizeof pair.key; ssize_t signed_size = 50; (void)ioctl; (void)getpid();\n"
        '  printf("%d %d", PAGE_SIZE, REMOTE_MEMORY);\n'
        "  return none && size == (size_t)signed_size ? LOCAL_MEMORY : 1;\n}\n"
    )
    for text in (f"#include <emucxl_lib.h>\n{names}{use}", f"{names}#include <emucxl_lib.h>\n{use}"):
        (tmp_path / "names.c").write_text(text)
        run("cc", "-Wall", "-Werror", f"-I{INCLUDE}", "-fsyntax-only", tmp_path / "names.c")


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
def test_the_library_exports_its_interface_and_no_more() -> None:
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library_path()).splitlines()}
    exported -= {"_init", "_fini", "__bss_start", "_edata", "_end"}
    assert not [name for name in exported if not name.startswith(("emx_", "emucxl_"))]
    declared = {
        name
        for header in HEADERS
        for name in re.findall(r"^EMX_API .*?\b(em(?:x|ucxl)_\w+)\(", header.read_text(), re.MULTILINE)
    }
    assert len([name for name in declared if name.startswith("emucxl_")]) == 15
    assert declared <= exported


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make install-c` has installed."""
    if compiler() is None or not all(shutil.which(tool) for tool in ("make", "cmake", "pkg-config")):
        pytest.skip("make, CMake, pkg-config and a C compiler are needed")
    work = tmp_path_factory.mktemp("install")
    make = ["make", "-C", ROOT, "install-c", f"BUILD_C={work / 'build'}"]
    run(*make, f"PREFIX={work / 'prefix'}")
    run(*make, "PREFIX=/usr/local", f"DESTDIR={work / 'staged'}")
    assert (work / "staged/usr/local/include/emucxl_lib.h").exists()
    return work / "prefix"


@pytest.mark.slow
def test_programs_compile_and_run_against_what_was_installed(prefix: Path, tmp_path: Path) -> None:
    paths = {"PKG_CONFIG_PATH": str(next(prefix.rglob("pkgconfig")))}
    flags = run("pkg-config", "--cflags", "--libs", "emucxl", **paths).split()
    assert run("pkg-config", "--modversion", "emucxl", **paths).strip() == __version__
    library = next(prefix.rglob("libemucxl.so"))
    assert library.resolve().name == "libemucxl.so.1"
    for name in ("two_nodes", "coherent_queue"):
        run("cc", "-Wall", "-Werror", EXAMPLES / f"{name}.c", *flags, "-o", tmp_path / name)
        assert run(tmp_path / name, LD_LIBRARY_PATH=str(library.parent))


@pytest.mark.slow
def test_a_cmake_project_finds_what_was_installed(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(user C)\nfind_package(emucxl REQUIRED)\n"
        f"add_executable(user {EXAMPLES / 'two_nodes.c'})\ntarget_link_libraries(user emucxl::emucxl)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "build")
    assert "answer = 42" in run(tmp_path / "build" / "user")


@pytest.mark.slow
def test_a_full_install_such_as_the_wheels_leaves_the_c_files_out(prefix: Path, tmp_path: Path) -> None:
    rules = prefix.parent / "build" / "native" / "src" / "cmake_install.cmake"
    run("cmake", f"-DCMAKE_INSTALL_PREFIX={tmp_path}", "-P", rules)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"libemucxl.so"}
