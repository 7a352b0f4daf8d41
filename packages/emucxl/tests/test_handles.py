"""NULL, memory that is no object, and objects that were closed, passed to every call of the C interface."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.c_programs import NATIVE, PROGRAMS, compile_program, compiler, run_program

PROGRAM = (PROGRAMS / "handle_facts.c").read_text()


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("fact", re.findall(r"FACT\((\w+)\),", PROGRAM))
def test_fact(fact: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.getbasetemp() / "handles"
    directory.mkdir(exist_ok=True)
    run_program(compile_program(Path("handle_facts.c"), directory), fact)


def test_every_call_is_among_them() -> None:
    headers = [NATIVE / "include" / "emucxl_lib.h", *(NATIVE / "include" / "emucxl").glob("*.h")]
    declared = {
        name
        for header in headers
        for name in re.findall(r"^EMX_API [^(]*?(\w+)\(", header.read_text(), re.MULTILINE)
    }
    assert len(declared) > 80
    assert {name for name in declared if not re.search(rf"\b{name}\(", PROGRAM)} == set()
