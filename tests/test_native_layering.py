"""The folders of the memory library's C core use what is below them.

An arrow is an include, or a call of the public interface: its headers are for all, so that a call does not show as an
include of the folder that defines it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "packages/emucxl/native/src"

# From the bottom up. Folders of one line know nothing of each other. A file that is in none is a room of its own.
FLOORS = (
    {"fail", "fork", "handle", "status", "thread"},
    {"prim"},
    {"pool", "timing", "resources"},
    {"provider"},
    {"heap"},
    {"context"},
    {"calibration", "coherence", "copy"},
    {"compat"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
INCLUDE = re.compile(r'#include "([^"]+)"')
DEFINITION = re.compile(r"^\w[\w *]*?\b(emx_\w+)\([^;{]*\)\s*\{", re.MULTILINE)
CALL = re.compile(r"\b(emx_\w+)\(")


def room_of(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").parts[0]


def arrows(root: Path) -> Iterator[tuple[str, str, str]]:
    """From which room to which, and where it is seen."""
    texts = {path: COMMENT.sub("", path.read_text()) for path in root.rglob("*.[ch]")}
    home = {call: room_of(path, root) for path, text in texts.items() for call in DEFINITION.findall(text)}
    for path, text in texts.items():
        room, shown = room_of(path, root), path.relative_to(root)
        for name in INCLUDE.findall(text):
            if (root / name).exists() and room_of(root / name, root) != room:
                yield room, room_of(root / name, root), f"{shown} includes {name}"
        for call in CALL.findall(text):
            if home.get(call, room) != room:
                yield room, home[call], f"{shown} calls {call}"


def arrows_that_run_back(root: Path) -> list[str]:
    """Between floors above the first: the files on it are the library's common ground, and use each other."""
    return [
        where
        for source, target, where in arrows(root)
        if FLOOR_OF[source] <= FLOOR_OF[target] and FLOOR_OF[source] > 0
    ]


def test_every_folder_of_the_core_has_a_floor() -> None:
    assert {room_of(path, SOURCES) for path in SOURCES.rglob("*.[ch]")} == set(FLOOR_OF)


def test_no_folder_of_the_core_uses_one_above_it() -> None:
    assert not arrows_that_run_back(SOURCES)


def test_includes_and_calls_are_seen(tmp_path: Path) -> None:
    for room in ("heap", "context"):
        (tmp_path / room).mkdir()
    (tmp_path / "context/context.h").write_text("")
    (tmp_path / "context/context.c").write_text('#include "heap/heap.h"\nint emx_open(\n    int a) {\n}\n')
    (tmp_path / "heap/heap.h").write_text('/* emx_open() is above */\n#include "context/context.h"\n')
    (tmp_path / "heap/heap.c").write_text("int emx_own(void) { return emx_open(1) + emx_own(); }\n")
    assert sorted(arrows_that_run_back(tmp_path)) == [
        "heap/heap.c calls emx_open",
        "heap/heap.h includes context/context.h",
    ]
