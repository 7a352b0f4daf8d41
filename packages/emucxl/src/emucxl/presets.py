"""Presets: timings of memories that exist, with their sources. The figures are data: presets.toml, beside this file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from emucxl.arguments import instance
from emucxl.errors import NotFoundError
from emucxl.timing import CurvePoint, Timing


@dataclass(frozen=True)
class Preset:
    """A timing with its source. What is modelled with it stays a model."""

    name: str
    title: str
    timing: Timing
    source: str
    """Who measured or specified it, where and when."""
    url: str | None
    note: str
    """Which figures the source gives, and which are a choice of ours."""


def presets() -> dict[str, Preset]:
    """Every preset by its name, the nearest memory first."""
    return dict(_load())


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        NotFoundError: there is none.
    """
    known = _load()
    instance("preset", name, str, "the name of one")
    if name not in known:
        raise NotFoundError(f"got the preset {name!r}; expected one of {', '.join(map(repr, known))}")
    return known[name]


@cache
def _load() -> dict[str, Preset]:
    text = resources.files("emucxl").joinpath("presets.toml").read_text(encoding="utf-8")
    return {name: _preset(name, entry) for name, entry in tomllib.loads(text).items()}


def _preset(name: str, entry: dict[str, Any]) -> Preset:
    title, source, url, note = (entry.pop(key, None) for key in ("title", "source", "url", "note"))
    curve = tuple(CurvePoint(*point) for point in entry.pop("curve", ()))
    return Preset(name, title, Timing(**entry, curve=curve), source, url, note)
