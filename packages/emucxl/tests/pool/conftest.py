"""Fixtures of pools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl.pool import Pool
from support.small_pools import EXTENT


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", 32 * EXTENT, extent_bytes=EXTENT, max_regions=8) as created:
        yield created
        created.check()
