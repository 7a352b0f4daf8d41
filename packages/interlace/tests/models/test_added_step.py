"""A step that a test adds: the engine tells at loading that nobody handles it."""

from __future__ import annotations

import pytest

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.launch import start
from interlace.models import decoder
from support.fetch import plan_with_fetch
from support.tiny_models import make_model
from tokenweave.errors import PlanError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    model = make_model(tmp_path_factory.mktemp("model") / "model", "llama")
    return EngineConfig(
        str(model), communicator="null", dtype="float32", num_kv_blocks=8, threads=1, executor="lanes"
    )


def test_a_step_without_a_handler_is_named_before_the_first_pass(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "plan_forward", plan_with_fetch)
    with pytest.raises(PlanError, match=r"no handler for fetch: expected a method Forward\.fetch\(step\)"):
        start(config)
