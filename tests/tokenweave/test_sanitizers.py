"""The native collectives under the compiler's sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_thousands_of_collectives_are_clean(tmp_path: Path, sanitizers: str) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "stress"
    sources = [
        *sorted((ROOT / "native" / "comm").glob("*.cpp")),
        ROOT / "tests/native/stress_collectives.cpp",
    ]
    flags = ["-std=c++17", "-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-pthread"]
    command = [compiler, *flags, f"-I{ROOT / 'native' / 'include'}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    for size, rounds in [(2, 4000), (3, 4000), (7, 500)]:
        run = subprocess.run([program, str(size), str(rounds)], capture_output=True, text=True, timeout=200)
        assert run.returncode == 0, run.stderr
        assert "WARNING" not in run.stderr
        assert run.stdout == "every result was right\n"
