"""The engine over modelled links: the same tokens, woven or not, and said to be modelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlace import LLM, SamplingParams
from interlace.engine.ranks.runner import own_cores
from support.tiny_models import make_model

LINK = "20MB/s,100us"
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = [[3 + (7 * i + j) % 90 for j in range(length)] for i, length in enumerate((5, 40, 23))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("model")
    return str(make_model(directory, "llama_9_heads"))


@pytest.fixture(scope="module")
def expected(model: str) -> list[list[int]]:
    return tokens_of(model, tp=1)[0]


def tokens_of(model: str, **options: Any) -> tuple[list[list[int]], dict[str, object]]:
    with LLM(model, dtype="float32", threads=1, num_kv_blocks=200, **options) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        return [list(output.outputs[0].token_ids) for output in outputs], llm.describe()


@pytest.mark.parametrize("weave", ["never", "always", "auto"])
@pytest.mark.parametrize("communicator", ["thread", "shm"])
def test_a_link_changes_no_token(
    model: str, expected: list[list[int]], communicator: str, weave: str
) -> None:
    got, described = tokens_of(model, tp=2, communicator=communicator, weave=weave, link=LINK)
    assert got == expected
    assert described["communicator"] == f"{communicator} over 0.02 GB/s, 100 us (modelled)"


@pytest.mark.slow
def test_a_link_over_torch_changes_no_token(model: str, expected: list[list[int]]) -> None:
    got, described = tokens_of(model, tp=2, communicator="torch", weave="always", link=LINK)
    assert got == expected
    assert described["communicator"] == "torch over 0.02 GB/s, 100 us (modelled)"


def test_ranks_that_fill_a_host_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 3, 6, 7})
    assert [own_cores(rank, 2, 2) for rank in range(2)] == [[2, 3], [6, 7]]
    assert [own_cores(rank, 4, 1) for rank in (4, 5, 6, 7)] == [[2], [3], [6], [7]]  # of the second host
    assert own_cores(0, 2, 1) == []  # cores are left: nobody stands in anybody's way
    assert own_cores(0, 1, 4) == []
