"""Fixtures of buffers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emucxl.context import Context
from emucxl.providers import Shm
from emucxl.tiers import Tier

MIB = 1 << 20


@pytest.fixture
def context() -> Iterator[Context]:
    with Context("virtual") as context:
        context.add_tier("local", 16 * MIB)
        context.add_tier("shared", 16 * MIB, Shm())
        yield context


@pytest.fixture
def tier(context: Context) -> Tier:
    return context.tiers["local"]
