"""Perplexity: how well a model predicts a fixed text, with dense weights and with weights in blocks.

The text is cut into windows that are scored alone, all but the first token of each, by every system alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness.worker import Worker
from emucxl.bench.harness import Report
from interlace.engine.config import EngineConfig
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.errors import BenchError
from interlace.models.batch import ForwardBatch
from interlace.models.gguf.names import is_gguf
from interlace.models.sources import resolve
from tokenweave.kernels import blocks_for

TEXT = Path(__file__).parent / "text" / "alice.txt"
DENSE = "none"


@dataclass
class Score:
    """The sums of one system over the tokens that it has scored so far, in nats."""

    system: str
    weights_bytes: int | None = None
    count: int = 0
    nll: float = 0.0
    divergence: float | None = None  # KL of its predictions from those of dense weights
    same_choice: int | None = None  # tokens at which both find the same token likeliest
    squared_error: float = 0.0  # of its logits, each row's mean left out, against those of dense weights
    squared_logits: float = 0.0  # of dense weights

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.count)

    @property
    def logits_error(self) -> float:
        """The root mean square error of the logits, over their own spread."""
        return math.sqrt(self.squared_error / self.squared_logits)

    def add(self, log_probs: Tensor, window: Sequence[int], dense: Tensor | None) -> None:
        """Scores a window: log_probs (tokens - 1, vocab), and those of dense weights."""
        targets = torch.tensor(window[1:])
        self.count += len(targets)
        self.nll -= log_probs.gather(1, targets[:, None]).double().sum().item()
        if dense is not None:
            divergence = (dense.exp() * (dense - log_probs)).sum(dim=1).double().sum().item()
            self.divergence = (self.divergence or 0.0) + divergence
            same = int((dense.argmax(dim=1) == log_probs.argmax(dim=1)).sum())
            self.same_choice = (self.same_choice or 0) + same
            expected = dense - dense.mean(dim=1, keepdim=True)
            error = log_probs - log_probs.mean(dim=1, keepdim=True) - expected
            self.squared_error += error.square().sum().item()
            self.squared_logits += expected.square().sum().item()


def windows_of(token_ids: Sequence[int], length: int, most: int | None) -> list[Sequence[int]]:
    """The text's whole windows, or the first `most` of them."""
    starts = range(0, len(token_ids) - length + 1, length)
    windows = [token_ids[at : at + length] for at in starts][:most]
    if not windows:
        raise BenchError(
            f"got a text of {len(token_ids)} tokens and windows of {length}; expected one at least"
        )
    return windows


def measure(
    model: str,
    quantize: Sequence[str],
    threads: int,
    length: int,
    most: int | None,
    progress: Callable[[float, str], None],
) -> tuple[list[Score], list[Sequence[int]]]:
    """Scores of dense weights and of each of `quantize`, and the windows."""
    names = [DENSE, *(name for name in quantize if name != DENSE)]
    groups: dict[str, RankGroup] = {}
    try:
        for name in names:
            config = EngineConfig(
                model,
                dtype="float32",
                threads=threads,
                quantize=name,
                max_model_len=length,
                num_kv_blocks=blocks_for(length),
                max_num_batched_tokens=max(64, length),
            )
            groups[name] = start(config)
        token_ids = groups[DENSE].tokenizer.encode(TEXT.read_text(encoding="utf-8"))
        windows = windows_of(token_ids, length, most)
        scores = {name: Score(f"interlace, {name}", _weights_bytes(groups[name])) for name in names}
        for index, window in enumerate(windows):
            dense: Tensor | None = None
            for name in names:
                log_probs = _log_probs(groups[name], window)
                scores[name].add(log_probs, window, dense)
                dense = log_probs if name == DENSE else dense
            progress((index + 1) / len(windows), f"window {index + 1} of {len(windows)}")
        return list(scores.values()), windows
    finally:
        for group in groups.values():
            group.close()


def _weights_bytes(group: RankGroup) -> int:
    return sum(info.weights_bytes for info in group.runner.ranks)


def _log_probs(group: RankGroup, window: Sequence[int]) -> Tensor:
    """Of every token but the first, given those before it: (len(window) - 1, vocab)."""
    batch = ForwardBatch.prefill(len(window), group.runner.model_config.vocab_size)
    wanted = torch.arange(len(window) - 1, dtype=torch.int32)
    batch = replace(batch, token_ids=torch.tensor(window, dtype=torch.int32), logit_rows=wanted)
    return group.execute(batch).log_softmax(dim=-1)


def peer_score(model: str, python: str, threads: int, windows: Sequence[Sequence[int]]) -> Score:
    """llama.cpp's score of the same windows of the same file, computed in the environment of `python`."""
    path = resolve(model, quiet=True)
    if not is_gguf(path):
        raise BenchError(f"got {path}, expected a GGUF file: llama.cpp reads no other")
    worker = Worker(python, "llamacpp")
    try:
        versions = worker.ask("load", model=str(path), threads=threads)["versions"]
        nll = sum(worker.ask("score", window=list(window))["nll"] for window in windows)
    finally:
        worker.close()
    return Score(f"llama.cpp {versions['llama-cpp-python']}", None, sum(len(w) - 1 for w in windows), nll)


def report(model: str, scores: Sequence[Score], windows: Sequence[Sequence[int]]) -> Report:
    """One row for each system."""
    rows = [
        (
            score.system,
            "" if score.weights_bytes is None else f"{score.weights_bytes / 1e6:,.1f}",
            f"{score.perplexity:.3f}",
            "" if score.divergence is None else f"{score.logits_error:.2%}",
            "" if score.divergence is None else f"{score.divergence / score.count:.5f}",
            "" if score.same_choice is None else f"{score.same_choice / score.count:.1%}",
        )
        for score in scores
    ]
    return Report(
        name="perplexity",
        title=f"{model}: {scores[0].count:,} tokens of {TEXT.name} in windows of {len(windows[0])} (measured)",
        columns=("system", "weights MB", "perplexity", "logits off by", "KL from dense", "same choice"),
        rows=tuple(rows),
        notes=(
            "float32 activations; logits off by: root mean square of the differences over that of the logits; "
            "KL in nats for each token; same choice: of the likeliest token.",
        ),
        results={"scores": [{**vars(score), "perplexity": score.perplexity} for score in scores]},
    )
