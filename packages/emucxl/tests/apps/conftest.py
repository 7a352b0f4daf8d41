"""Two tiers for the applications: counted ones, which fail on demand, and real ones on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from emucxl import native
from support.fake_tiers import FakeTier

MakeTiers = Callable[..., tuple[Any, Any]]


@pytest.fixture(params=["counted", "real"])
def make_tiers(request: pytest.FixtureRequest) -> Iterator[MakeTiers]:
    """`make_tiers(local_bytes, remote_bytes)`, with plenty of both where not said."""
    if request.param == "counted":
        yield lambda *sizes: _pair(FakeTier, sizes)
        return
    if native.unavailable_reason() is not None:
        pytest.skip(f"no native core: {native.unavailable_reason()}")
    from emucxl import Context

    with Context(clock="virtual") as context:
        yield lambda *sizes: _pair(context.add_tier, sizes)
        context.check()


def _pair(make: Callable[[str, int], Any], sizes: tuple[int, ...]) -> tuple[Any, Any]:
    local_bytes, remote_bytes = (*sizes, 64 << 20, 64 << 20)[:2]
    return make("local", local_bytes), make("remote", remote_bytes)
