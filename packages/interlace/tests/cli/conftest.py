"""The command line, run in this process; where a test asks for `fake_model`, over a model that only counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interlace.cli import session
from interlace.cli.main import app
from interlace.engine.config import EngineConfig
from interlace.engine.llm import LLM
from support.engine_fakes import FakeRanks

Invoke = Callable[..., Any]


class DescribedRanks(FakeRanks):
    """Two ranks, as far as their description goes."""

    weights_tier_bytes = 0  # of each rank

    def describe(self) -> dict[str, object]:
        return {
            "ranks": [{"rank": 0}, {"rank": 1}],
            "communicator": "shm",
            "device": "cpu",
            "dtype": "float32",
            "weights": "none",
            "kernels": "native",
            "threads_per_rank": 1,
            "num_kv_blocks": self.num_blocks,
            "memory_per_rank_bytes": [400_000_000, 390_000_000],
            "weights_per_rank_bytes": [90_000_000, 80_000_000],
            "weights_tier_per_rank_bytes": [self.weights_tier_bytes] * 2,
        }


@pytest.fixture
def invoke() -> Invoke:
    """`invoke("generate", "--json", "Hi", input="...")`, as typed."""
    runner = CliRunner()

    def run(*arguments: str, input: str | bytes | None = None) -> Any:
        return runner.invoke(app, list(arguments), input=input, prog_name="interlace")

    return run


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> DescribedRanks:
    """Has `generate` and `chat` open a fake model."""
    ranks = DescribedRanks()

    def open_llm(config: EngineConfig) -> LLM:
        return LLM(config.model, ranks=ranks)

    monkeypatch.setattr(session, "open_llm", open_llm)
    return ranks


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model directory: 9 heads, 3 KV heads, random weights."""
    from support.tiny_models import make_model

    return make_model(tmp_path_factory.mktemp("cli") / "tiny", "llama_9_heads")
