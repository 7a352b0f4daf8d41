"""The pictures of the documentation: each is what its script draws today, and a page shows it."""

from __future__ import annotations

import importlib
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(IMAGES))
    return {name: importlib.import_module(name) for name in ("make_timeline", "make_tiers", "make_kv_sim")}


def test_the_timeline_is_drawn_from_the_recording(scripts: dict[str, Any]) -> None:
    recorded = json.loads((IMAGES / "timeline.json").read_text())
    assert (IMAGES / "weaving.svg").read_text() == scripts["make_timeline"].draw(recorded)


def test_the_chart_of_a_cache_is_drawn_from_the_recording(scripts: dict[str, Any]) -> None:
    recorded = json.loads((IMAGES / "kv_sim.json").read_text())
    assert (IMAGES / "kv-sim.svg").read_text() == scripts["make_kv_sim"].draw(recorded)


@pytest.mark.parametrize("name", ["tiers.svg", "load.svg"])
def test_a_picture_of_the_memories_shows_the_presets_of_today(name: str, scripts: dict[str, Any]) -> None:
    assert (IMAGES / name).read_text() == scripts["make_tiers"].PICTURES[name]()


def test_the_window_of_a_trace_has_two_whole_layers_on_both_ranks(scripts: dict[str, Any]) -> None:
    """Five layers of 10 ms, in each of which a rank computes 4 ms, transfers, and computes 3."""
    events = [
        {"ph": "X", "pid": rank, "ts": 1e4 * layer + start, "dur": duration, "cat": lane}
        | {"args": {"pass": 0, "layer": layer, "part": 0, "op": op, "of_tokens": 8, "split": None}}
        for rank in (0, 1)
        for layer in range(5)
        for op, lane, start, duration in [
            ("attention", "compute", 0, 4e3),
            ("reduce_norm", "transfer", 4e3, 2e3),
            ("mlp", "compute", 6e3, 3e3),
        ]
    ]
    window = scripts["make_timeline"].window_of({"traceEvents": events})
    assert (window.duration_ms, window.pass_ms) == (20, 49)
    assert [(bar.rank, bar.op, bar.start_ms, bar.end_ms) for bar in window.bars][:3] == [
        (0, "attention", 0, 4),
        (0, "reduce_norm", 4, 6),
        (0, "mlp", 6, 9),
    ]
    assert len(window.bars) == 12


@pytest.mark.parametrize("picture", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_is_well_formed_has_a_title_and_is_shown(picture: Path) -> None:
    drawn = ElementTree.parse(picture).getroot()
    assert drawn.findtext("{http://www.w3.org/2000/svg}title")
    assert "prefers-color-scheme: dark" in picture.read_text()
    shown = re.compile(rf"!\[[^\]]+\]\([\w./]*images/{re.escape(picture.name)}\)")
    assert any(shown.search(page.read_text()) for page in PAGES)
