"""Comparisons are kept for a machine, its instruction set, its threads, a build and a model's sizes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from interlace.engine.dtypes import kept
from interlace.engine.dtypes.products import EXAMPLE, Comparison, ProductTimes

SUBJECT = kept.Subject("a processor", "amx", "0.1.0 abcd", 2, EXAMPLE)
FOUND = Comparison(EXAMPLE, ProductTimes(1e-11, 2e-10, 3e-10), ProductTimes(5e-12, 1e-10, 2e-10))
OTHER = Comparison(EXAMPLE, ProductTimes(5e-12, 1e-10, 2e-10), ProductTimes(1e-11, 2e-10, 3e-10))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_found_again() -> None:
    assert kept.load(SUBJECT) is None
    assert kept.keep(SUBJECT, FOUND) == FOUND
    assert kept.load(SUBJECT) == FOUND
    assert [path.name for path in SUBJECT.path.parent.iterdir()] == [SUBJECT.path.name]


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "another"},
        {"isa": "avx512bf16"},
        {"library": "0.1.0 ef01"},
        {"threads": 1},
        {"products": replace(EXAMPLE, blocks="q8_0")},
        {"products": replace(EXAMPLE, layer_weights=1)},
    ],
)
def test_another_machine_build_or_model_is_measured_for_itself(change: dict[str, object]) -> None:
    kept.keep(SUBJECT, FOUND)
    assert kept.load(replace(SUBJECT, **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"format": 1, "subject": {}}'],
    ids=["empty", "cut", "list", "object", "null", "bytes", "foreign"],
)
def test_a_damaged_file_is_measured_again_and_replaced(content: bytes) -> None:
    SUBJECT.path.parent.mkdir(parents=True)
    SUBJECT.path.write_bytes(content)
    assert kept.load(SUBJECT) is None
    assert kept.keep(SUBJECT, FOUND) == FOUND
    assert kept.load(SUBJECT) == FOUND


@pytest.mark.parametrize("wrong", ['"prompt_s": 0', '"prompt_s": NaN', '"prompt_s": "fast"', '"speed": 1'])
def test_times_that_are_none_are_not_believed(wrong: str) -> None:
    kept.keep(SUBJECT, FOUND)
    text = SUBJECT.path.read_text()
    assert '"prompt_s": 1e-11' in text
    SUBJECT.path.write_text(text.replace('"prompt_s": 1e-11', wrong))
    assert kept.load(SUBJECT) is None


def test_a_cache_that_takes_no_files_is_no_error(cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    assert kept.keep(SUBJECT, FOUND) == FOUND
    assert kept.load(SUBJECT) is None


def test_a_file_system_without_hard_links_keeps_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    assert kept.keep(SUBJECT, FOUND) == FOUND
    assert kept.load(SUBJECT) == FOUND
    assert len(list(SUBJECT.path.parent.iterdir())) == 1


def test_the_first_to_keep_decides_for_all() -> None:
    kept.keep(SUBJECT, FOUND)
    assert kept.keep(SUBJECT, OTHER) == FOUND
    assert FOUND.faster != OTHER.faster


def test_many_at_once_agree() -> None:
    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(lambda at: kept.keep(SUBJECT, (FOUND, OTHER)[at % 2]), range(64)))
    assert told == {kept.load(SUBJECT)}
    assert len(list(SUBJECT.path.parent.iterdir())) == 1
