"""The names that users import, pinned: a change here is a change for them."""

from __future__ import annotations

import pytest

import emucxl

NAMES = [
    "Allocation",
    "Anon",
    "Buffer",
    "Calibration",
    "Cache",
    "Coherence",
    "Completion",
    "Context",
    "Copy",
    "CopyEngine",
    "CurvePoint",
    "Dax",
    "EmucxlError",
    "IndexedCopy",
    "Link",
    "Null",
    "Numa",
    "Pool",
    "Preset",
    "RegionMemory",
    "SharedSegment",
    "Shm",
    "Tier",
    "TierInfo",
    "TierStats",
    "Timing",
    "preset",
]


def test_exported_names_are_these() -> None:
    assert sorted(emucxl.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_exported_name_resolves(name: str) -> None:
    assert getattr(emucxl, name).__name__ == name
    assert name in dir(emucxl)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(emucxl, "Nonesuch")
