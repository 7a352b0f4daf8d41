"""Fixtures of contexts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emucxl.context import Context
from emucxl.tiers import Tier

MIB = 1 << 20


@pytest.fixture
def context() -> Iterator[Context]:
    with Context("virtual") as context:
        yield context


@pytest.fixture
def tier(context: Context) -> Tier:
    return context.add_tier("local", 4 * MIB)
