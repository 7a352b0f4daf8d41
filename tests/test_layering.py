"""Imports point down only. Every import statement counts, also those inside functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parent.parent / "packages"

ENGINE = PACKAGES / "interlace/src/interlace/engine"
SHARED = ("config", "protocols", "values")  # by the loop and the rooms under it
LOOP = tuple(f"interlace.engine.{path.stem}" for path in ENGINE.glob("[!_]*.py") if path.stem not in SHARED)

# A package, and what nothing in it may import.
FORBIDDEN = {
    "emucxl": ("tokenweave", "interlace", "benchmarks", "torch"),
    "tokenweave": ("interlace", "benchmarks"),
    "interlace": ("benchmarks",),
    "interlace/cache": ("interlace.engine", "interlace.models", "interlace.cli", "torch"),
    "interlace/models": ("interlace.engine", "interlace.cli"),
    "interlace/engine": ("interlace.cli",),
    "interlace/engine/ranks": LOOP,
    "interlace/engine/weaving": LOOP,
    "interlace/engine/cache": (*LOOP, "interlace.engine.ranks", "interlace.engine.weaving"),
    "interlace/engine/dtypes": (*LOOP, "interlace.engine.ranks", "interlace.engine.weaving"),
}


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


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


def import_graph(*roots: Path) -> dict[str, set[str]]:
    """Each module's imports. A package that a module is in does not count: it is imported with every module of it."""
    files = {module_of(path, root): (path, root) for root in roots for path in root.rglob("*.py")}
    return {
        name: {
            module
            for module in imported_modules(path, root)
            if module in files and not is_within(name, module)
        }
        for name, (path, root) in files.items()
    }


def circles(graph: dict[str, set[str]]) -> set[str]:
    """The modules that import themselves by way of others."""

    def reached(module: str) -> set[str]:
        found: set[str] = set()
        ahead = list(graph[module])
        while ahead:
            if (next_one := ahead.pop()) not in found:
                found.add(next_one)
                ahead += graph[next_one]
        return found

    return {module for module in graph if module in reached(module)}


@cache
def circles_in_the_packages() -> set[str]:
    return circles(import_graph(*PACKAGES.glob("*/src")))


@pytest.mark.parametrize("package", ["emucxl", "tokenweave", "interlace"])
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    """Imports for type checking count too: what needs the other to be understood is one thing in two files."""
    assert not [module for module in sorted(circles_in_the_packages()) if is_within(module, package)]


def test_a_circle_is_seen(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "first.py").write_text("from room import second\n")
    (room / "second.py").write_text("if TYPE_CHECKING:\n    from room.third import name\n")
    (room / "third.py").write_text("def f():\n    import room.first\n")
    (room / "fourth.py").write_text("from room import first\n")
    assert circles(import_graph(tmp_path)) == {"room.first", "room.second", "room.third"}


def test_relative_and_lazy_imports_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "interlace" / "models" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from ..engine import llm\n    from interlace import cli\n")
    assert {"interlace.engine.llm", "interlace.cli"} <= set(imported_modules(path, tmp_path))
