"""The three packages have one version, which everything that names it agrees on."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import emucxl
import interlace
import tokenweave

ROOT = Path(__file__).parent.parent
PACKAGES = {"emucxl": emucxl, "tokenweave": tokenweave, "interlace": interlace}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_the_version_that_was_installed(name: str) -> None:
    assert PACKAGES[name].__version__ == metadata.version(name) == interlace.__version__


def test_the_citation_has_it() -> None:
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == interlace.__version__


def test_the_changelog_opens_with_it_or_with_what_is_not_released() -> None:
    first = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert first == "Unreleased" or first.startswith(f"{interlace.__version__} - ")


def test_the_changelog_says_nothing_twice() -> None:
    entries = re.findall(r"^- (.{60})", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(entries) == len(set(entries))


@pytest.mark.parametrize(
    ("name", "needs"), [("tokenweave", ["emucxl"]), ("interlace", ["emucxl", "tokenweave"])]
)
def test_a_package_needs_the_others_of_its_own_minor_version(name: str, needs: list[str]) -> None:
    major, minor = map(int, re.findall(r"\d+", interlace.__version__)[:2])
    wanted = {f">={major}.{minor}", f"<{major}.{minor + 1}"}
    required = metadata.requires(name) or []
    for other in needs:
        (bounds,) = [line.split("]")[-1] for line in required if re.match(rf"{other}\b.*[<>]", line)]
        assert set(bounds.removeprefix(other).split(",")) == wanted
