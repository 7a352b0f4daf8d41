"""The promise of tiers: whatever runs beside a request, is found for it or fails it, its tokens and logprobs are those,
to the bit, that it has alone on an engine that keeps nothing.

Random requests at once, aborted, preempted, reset, over few blocks and small tiers, that fetch all, some or what is
planned, from tiers that fail now and then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from support.kv_programs import ANY_LIMITS, Limits, Program, Stage, programs
from support.tiny_models import FAMILIES, make_model

TIERS = ("dram:4MiB", "cxl:4MiB@cxl-direct")
ONE_OF_EACH = sorted({model_type: name for name, (model_type, _) in reversed(FAMILIES.items())}.values())
DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
    "max_position_embeddings": 32,
}
# A program that fails is long. It is told as it is: to shorten it takes minutes, and what other threads do differs.
OPTIONS: dict[str, Any] = {
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
}
FEW = settings(max_examples=5, **OPTIONS)
SOME = settings(max_examples=8, **OPTIONS)


class Case:
    """A model of a family, and how ranks compute it."""

    def __init__(self, family: str, changes: dict[str, Any] | None = None, **options: Any) -> None:
        self.family, self.changes, self.options = family, changes or {}, options

    def __str__(self) -> str:
        return " ".join([self.family, *self.changes, *(f"{k}={v}" for k, v in self.options.items())])


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    case: Case = request.param
    model = make_model(tmp_path_factory.mktemp("model"), case.family, **case.changes)
    with Stage.open(model, **{"kv_tiers": TIERS, **case.options}) as stage:
        yield stage


def on(*cases: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stage", cases, ids=str, indirect=True)


@on(Case("llama"))
@given(program=programs(12), limits=ANY_LIMITS)
@SOME
def test_programs_of_requests_give_the_bits_of_each_alone(
    stage: Stage, program: Program, limits: Limits
) -> None:
    stage.check(program, limits)


@pytest.mark.slow
@on(
    *(Case(family) for family in [*ONE_OF_EACH, "phi3_longrope", "qwen2_mixed_windows"]),
    Case("llama", DYNAMIC),
    Case("llama", dtype="bfloat16"),
    Case("mixtral", dtype="bfloat16", executor="sequential"),
    Case("llama", executor="sequential", replay=False),
    Case("llama", {"num_hidden_layers": 5}, weights_tier="dram:16MiB"),
)
@given(program=programs(30), limits=ANY_LIMITS)
@SOME
def test_so_do_all_families_on_one_rank(stage: Stage, program: Program, limits: Limits) -> None:
    stage.check(program, limits)


NO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}  # over three ranks: rank 0 has none
THREADS = {"communicator": "thread"}


@pytest.mark.slow
@on(
    Case("llama", tp=2, weave="always", **THREADS),
    Case("llama", tp=2, weave="never", executor="sequential", **THREADS),
    Case("llama_9_heads", tp=2, weave="always", dtype="bfloat16", **THREADS),
    Case("llama_5_heads", tp=3, weave="always", **THREADS),
    Case("llama", NO_HEADS, tp=3, weave="always", **THREADS),
    Case("llama", {**NO_HEADS, "num_hidden_layers": 5}, tp=2, weights_tier="dram:16MiB", **THREADS),
    Case("mixtral", tp=2, weave="always", replay=False, **THREADS),
    Case("phi3_longrope", tp=2, weave="always", **THREADS),
    Case("llama", DYNAMIC, tp=2, weave="always", **THREADS),
    Case("gemma3", tp=3, weave="never", **THREADS),
    Case("llama_6_heads", tp=2, weave="always", communicator="shm"),
    Case("llama", NO_HEADS, tp=3, weave="never", communicator="shm"),
)
@given(program=programs(20), limits=ANY_LIMITS)
@FEW
def test_so_do_several_ranks_woven_or_not(stage: Stage, program: Program, limits: Limits) -> None:
    stage.check(program, limits)
