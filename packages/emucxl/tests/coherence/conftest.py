"""Fixtures of the coherence model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emucxl.shared_memory import SharedSegment


@pytest.fixture
def segment() -> Iterator[SharedSegment]:
    with SharedSegment.create("coherence", 4096) as segment:
        yield segment
