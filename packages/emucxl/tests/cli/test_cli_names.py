"""Names from files and other processes, which a terminal must not obey."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl import monitor
from emucxl.cli import console
from emucxl.cli.text import cell, printable
from emucxl.pool import Pool, pool_path

EVIL = "\x1b]0;pwned\x07\x9b31m"  # a window's title, a bell, a colour in one character
TAG, NAME = "tag-of-a-region", "name-of-a-host"
MARKUP = "[/b][red]x"


def output_of(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "emucxl", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def assert_harmless(output: str) -> None:
    assert "pwned" in output
    assert all(character.isprintable() or character == "\n" for character in output), repr(output)


@pytest.fixture
def evil_pool(tmp_path: Path) -> Iterator[Path]:
    """A pool whose region and host got names that the library refuses, by way of the file."""
    path = tmp_path / "pool"
    with Pool.create(path, size_bytes=2 << 20) as pool, pool.join(NAME) as host:
        host.carve(TAG, 1 << 20, persistent=True).close()
        content = path.read_bytes()
        with path.open("r+b") as file:
            for text in (TAG, NAME):
                file.seek(content.index(text.encode()))
                file.write(EVIL.encode()[: len(text)].ljust(len(text), b"!"))
        yield path


def test_a_pool_may_hold_any_names(evil_pool: Path) -> None:
    assert_harmless(output_of("pool", "show", str(evil_pool)))


def test_top_shows_a_pool_of_any_names(evil_pool: Path) -> None:
    assert_harmless(output_of("top", "--once", "--interval", "0.05", "--pool", str(evil_pool)))


def test_files_of_any_names_are_listed() -> None:
    path = pool_path(f"{EVIL}{os.getpid()}")
    try:
        path.write_bytes(b"no pool")
        assert_harmless(output_of("pool", "list"))
        assert_harmless(output_of("pool", "show", path.name.removeprefix("emucxl-pool-")))
    except OSError:
        pytest.skip("there is no /dev/shm to write to")
    finally:
        path.unlink(missing_ok=True)


def test_top_shows_tiers_of_any_names_in_processes_of_any_names() -> None:
    page = monitor._ContextPage(
        magic=monitor._CONTEXT_MAGIC, version=monitor._CONTEXT_VERSION, num_tiers=2, pid=os.getpid()
    )
    page.tiers[0].name, page.tiers[1].name = EVIL.encode(), MARKUP.encode()
    page.page_bytes = ctypes.sizeof(page)
    fd = os.memfd_create(monitor.CONTEXT_NAME)
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    try:
        os.write(fd, bytes(page))
        comm.write_text("x\x1b[31m")
        output = output_of("top", "--once", "--interval", "0.05")
    finally:
        comm.write_text(before)
        os.close(fd)
    assert_harmless(output)
    assert MARKUP in output


@pytest.mark.parametrize("name", ["\x9b31m", "\x7f", "x\u202ey", "\udc80"])
def test_json_holds_a_name_and_shows_a_terminal_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.show_json({"name": name, "räksmörgås": 1})
    printed = capsys.readouterr().out
    assert printed.rstrip("\n").isprintable()
    assert json.loads(printed) == {"name": name, "räksmörgås": 1}


@pytest.mark.parametrize("text", ["local", "räksmörgås 漢字", "[red]", ""])
def test_what_can_be_read_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text == cell(text).plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1bb", "a\\x1bb"),
        ("\x9b", "\\x9b"),
        ("\x7f", "\\x7f"),
        ("x\u202ey", "x\\u202ey"),
        ("\udc80", "\\udc80"),
        ("\n", "\\n"),
    ],
)
def test_what_cannot_be_read_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
