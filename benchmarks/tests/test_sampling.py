"""The sampling benchmark: both sides choose the same way, and a wrong token stops it before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.kernels.sampling import CHOICES, TorchSampler, check, laws
from interlace.errors import BenchError
from tokenweave.sampling import SampledRow, reference_sample

GREEDY, FREE = CHOICES[0], CHOICES[1]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
@pytest.mark.parametrize("law", ["peaked", "flat"])
def test_torch_draws_among_the_tokens_that_the_reference_keeps(choice: Any, law: str) -> None:
    logits = laws(2, 500)[law]
    rows = choice.rows(2, 500)
    check(choice, logits, rows, reference_sample(logits, rows))
    drawn = TorchSampler(logits, rows).sample()
    assert drawn.shape == (2,)
    if choice is not GREEDY and rows[0].temperature > 0:
        assert TorchSampler(logits, rows).kept()[torch.arange(2), drawn].all()


def test_penalties_of_torch_are_those_of_the_reference() -> None:
    choice = next(each for each in CHOICES if each.name.startswith("penalties"))
    logits = laws(3, 300)["flat"]
    rows = [row._replace(temperature=0.0) for row in choice.rows(3, 300)]
    expected = [found.token for found in reference_sample(logits, rows)]
    assert TorchSampler(logits, rows).sample().tolist() == expected


@pytest.mark.parametrize("choice", [GREEDY, FREE], ids=lambda choice: choice.name)
def test_a_token_that_is_not_the_references_is_an_error(choice: Any) -> None:
    logits = laws(1, 100)["peaked"]
    rows = choice.rows(1, 100)
    (found,) = reference_sample(logits, rows)
    assert found.token is not None
    wrong = SampledRow(99 - found.token, found.largest)
    with pytest.raises(BenchError, match="not those of its reference"):
        check(choice, logits, rows, [wrong])


def test_a_nucleus_of_torch_that_is_another_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = next(each for each in CHOICES if each.name == "top-k 50")
    logits = laws(1, 400)["flat"]
    rows = choice.rows(1, 400)
    monkeypatch.setattr(TorchSampler, "kept", lambda self: torch.ones(1, 400, dtype=torch.bool))
    with pytest.raises(BenchError, match="keeps other tokens"):
        check(choice, logits, rows, reference_sample(logits, rows))


def test_peaked_logits_fall_as_a_models_do() -> None:
    ordered = laws(1, 4096)["peaked"][0].sort(descending=True).values
    assert ordered[0] == 0
    assert ordered[15] == pytest.approx(-4.4)
    assert int((torch.softmax(ordered, 0).cumsum(0) < 0.95).sum()) in range(60, 140)


def test_the_command_reports_every_choice(invoke: Callable[..., Any]) -> None:
    result = invoke("sampling", "--quick", "--seconds", "0.0001", "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    for choice in CHOICES:
        assert choice.name in result.stdout
