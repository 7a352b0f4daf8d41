"""A step that a test adds: the engine tells at loading that nobody handles it, and runs it beside the others."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.launch import start
from interlace.models import batch as batches
from interlace.models import decoder
from interlace.models.batch import ForwardBatch
from support.added_step import plan_with_peek
from support.tiny_models import make_model
from tokenweave.errors import PlanError
from tokenweave.plan import Step


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    model = make_model(tmp_path_factory.mktemp("model") / "model", "llama")
    return EngineConfig(
        str(model), communicator="null", dtype="float32", num_kv_blocks=8, threads=1, executor="lanes"
    )


def test_a_step_without_a_handler_is_named_before_the_first_pass(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "plan_forward", plan_with_peek)
    with pytest.raises(PlanError, match=r"no handler for peek: expected a method Forward\.peek\(step\)"):
        start(config)


def test_a_step_on_another_lane_runs_beside_a_pass_that_is_not_split(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, str] = {}

    def peek(forward: decoder.Forward, step: Step) -> None:
        threads[step.name] = threading.current_thread().name

    monkeypatch.setattr(decoder.Forward, "peek", peek, raising=False)
    for module in (decoder, batches):
        monkeypatch.setattr(module, "plan_forward", plan_with_peek)
    with closing(start(config)) as ranks:
        batch = ForwardBatch.prefill(3, vocab_size=16)
        assert batch.split is None
        logits = ranks.runner.execute(batch)
        layers = ranks.runner.model_config.num_layers
    assert len(logits) == 1
    assert threads == {f"peek[{layer}]": "lane-memory" for layer in range(layers)}
