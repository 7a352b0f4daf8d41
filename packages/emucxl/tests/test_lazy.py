"""A package whose names are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

INIT = """from emucxl.lazy import lazy_names
__getattr__, __dir__ = lazy_names(__name__, {"Thing": "things"})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "things.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lazy_package", "lazy_package.things"):
        monkeypatch.setitem(sys.modules, name, sys)  # so that what stands there afterwards is removed
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("lazy_package")


def test_the_module_of_a_name_is_imported_when_the_name_is_used(package: object) -> None:
    assert "lazy_package.things" not in sys.modules
    assert getattr(package, "Thing").__module__ == "lazy_package.things"  # noqa: B009


def test_names_are_listed_before_they_are_used(package: object) -> None:
    assert {"Thing", "__name__"} <= set(dir(package))


def test_an_unknown_name_is_named(package: object) -> None:
    with pytest.raises(AttributeError, match="'lazy_package' has no attribute 'Nonesuch'"):
        getattr(package, "Nonesuch")  # noqa: B009
