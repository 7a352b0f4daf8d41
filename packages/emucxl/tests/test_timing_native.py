"""Links and the copy engine under many threads, with the core compiled under the sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.c_programs import compile_program, compiler, run_program

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_links_and_engines_bear_many_threads(sanitize: str, tmp_path: Path) -> None:
    program = compile_program(Path("stress_link.c"), tmp_path, sanitize)
    assert run_program(program, timeout_s=240) == "ok\n"
