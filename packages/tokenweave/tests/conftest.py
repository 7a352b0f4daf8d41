from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.rank_groups import TIMEOUT_S, MakeRanks, Ranks, Workers, make_ranks


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Rank processes that outlast the groups they join."""
    made = Workers()
    yield made
    made.close()


@pytest.fixture
def make(workers: Workers) -> Iterator[MakeRanks]:
    """Makes groups of ranks, and closes them after the test."""
    made: list[Ranks] = []

    def make_one(kind: str, size: int, **options: object) -> Ranks:
        made.append(make_ranks(kind, size, workers, **{"timeout_s": TIMEOUT_S, **options}))
        return made[-1]

    yield make_one
    for ranks in made:
        ranks.close()
