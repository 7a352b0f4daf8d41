from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest

from support.rank_groups import TIMEOUT_S, MakeRanks, Ranks, Workers, make_ranks

if TYPE_CHECKING:
    from support.cubins import Compile


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    """Compiles a kernel for a GPU, and leaves nothing in the user's cache."""
    from support.cubins import compile_kernel

    directory = tmp_path_factory.mktemp("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(directory))
        yield partial(compile_kernel, directory=directory)
