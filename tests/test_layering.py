"""Imports point down only. Every import statement counts, also those inside functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parent.parent / "packages"

LOOP = tuple(f"interlace.engine.{name}" for name in ("async_llm", "engine", "frontend", "llm", "scheduler"))

# A package, and what nothing in it may import.
FORBIDDEN = {
    "emucxl": ("tokenweave", "interlace", "torch"),
    "tokenweave": ("interlace",),
    "interlace/models": ("interlace.engine", "interlace.cli"),
    "interlace/engine": ("interlace.cli",),
    "interlace/engine/ranks": LOOP,
    "interlace/engine/weaving": LOOP,
    "interlace/engine/cache": (*LOOP, "interlace.engine.ranks", "interlace.engine.weaving"),
}


def imported_modules(path: Path, root: Path) -> Iterator[str]:
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_nothing_above_it(package: str) -> None:
    sources = PACKAGES / package.partition("/")[0] / "src"
    files = list((sources / package).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(sources)} imports {module}"
        for path in files
        for module in imported_modules(path, sources)
        for forbidden in FORBIDDEN[package]
        if is_within(module, forbidden)
    ]
    assert not wrong


def test_relative_and_lazy_imports_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "interlace" / "models" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from ..engine import llm\n    from interlace import cli\n")
    assert {"interlace.engine.llm", "interlace.cli"} <= set(imported_modules(path, tmp_path))
