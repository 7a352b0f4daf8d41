"""Perplexity: the score of a window is transformers' loss, and the text is as long as promised."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.quality import perplexity
from benchmarks.quality.perplexity import TEXT, Score, measure, report, windows_of
from interlace.errors import BenchError
from support.tiny_models import make_model


def untold(fraction: float, what: str) -> None:
    pass


def test_dense_weights_have_the_perplexity_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_model(tmp_path)
    scores, windows = measure(str(tmp_path), ["int8"], 1, 40, 3, untold)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        ids = torch.tensor(windows)
        loss = oracle(ids, labels=ids).loss.item()
    dense, stored = scores
    assert dense.count == stored.count == 3 * 39
    assert dense.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert dense.divergence is None
    assert stored.divergence is not None
    assert stored.divergence > 0
    assert stored.weights_bytes is not None
    assert dense.weights_bytes is not None
    assert stored.weights_bytes < dense.weights_bytes
    rows = report("tiny", scores, windows).rows
    assert [row[0] for row in rows] == ["interlace, none", "interlace, int8"]


def test_divergence_and_choices_are_counted_against_dense_weights() -> None:
    dense = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    other = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log()
    score = Score("x")
    score.add(other, [0, 1, 1], dense)
    assert score.perplexity == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.8)) / 2))
    assert score.divergence == pytest.approx(0.25 * math.log(2))
    assert score.same_choice == 1
    expected = dense[0] - dense[0].mean()  # (2, -1, -1) times log(2) / 3
    moved = math.log(2) ** 2 * 2  # two logits of the first row, each by log(2)
    others = dense[1] - dense[1].mean()
    squares = expected.square().sum().item() + others.square().sum().item()
    assert score.logits_error == pytest.approx(math.sqrt(moved / squares), rel=1e-5)


def test_the_text_is_cut_into_whole_windows() -> None:
    assert windows_of(range(10), 4, None) == [range(4), range(4, 8)]
    assert windows_of(range(10), 4, 1) == [range(4)]
    with pytest.raises(BenchError, match="a text of 10 tokens and windows of 11"):
        windows_of(range(10), 11, None)
    assert len(TEXT.read_bytes()) > 100_000


def test_a_directory_has_no_score_of_llama_cpp(tmp_path: Path) -> None:
    make_model(tmp_path)
    with pytest.raises(BenchError, match="expected a GGUF file"):
        perplexity.peer_score(str(tmp_path), "python", 1, [[1, 2]])
