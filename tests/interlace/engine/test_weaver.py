"""The weaver decides; the tokens stay what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlace import LLM, SamplingParams
from support.tiny_models import make_model

PROMPTS = [list(range(5, 5 + n)) for n in (1, 23, 60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama_9_heads")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[tuple[int, ...]]:
    return tokens(model, tp=1)


def tokens(model: Path, **options: object) -> list[tuple[int, ...]]:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    options = {"dtype": "float32", "num_kv_blocks": 64, "threads": 1} | options
    with LLM(str(model), **options) as llm:  # type: ignore[arg-type]
        return [tuple(output.token_ids) for output in llm.generate(PROMPTS, params)]


@pytest.mark.parametrize(
    ("weave", "communicator"),
    [
        ("never", "thread"),
        ("always", "thread"),
        ("auto", "thread"),
        ("always", "shm"),
        pytest.param("never", "shm", marks=pytest.mark.slow),
        pytest.param("auto", "shm", marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_do_not_depend_on_weaving(
    model: Path, expected: list[tuple[int, ...]], weave: str, communicator: str
) -> None:
    assert tokens(model, tp=2, communicator=communicator, weave=weave) == expected
