from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.rank_groups import Workers


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Rank processes that outlast the groups they join."""
    made = Workers()
    yield made
    made.close()
