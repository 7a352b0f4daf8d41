"""Interlace itself, stepped one forward pass at a time so that the first token is seen when it appears."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .protocol import Operation

if TYPE_CHECKING:
    from tokenweave.plan import Step


class InterlaceSystem:
    """One engine over its ranks. The engine detokenises as it does for every caller."""

    def load(self, model: str, **options: Any) -> dict[str, Any]:
        """Start the ranks; `options` are those of `interlace.LLM`. Rounds have the same prompts, and compute each."""
        from interlace.engine.config import EngineConfig
        from interlace.engine.engine import Engine
        from interlace.engine.ranks.launch import start

        config = EngineConfig.from_options(model, {"prefix_cache": False, **options})
        self._ranks = start(config)
        self._engine = Engine(self._ranks, config)
        versions = {name: version(name) for name in ("interlace", "torch")}
        return {"versions": versions, "engine": self._ranks.describe()}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        """Greedy tokens of exactly the length asked for."""
        from interlace.cli.bench.generation import generate

        return asdict(generate(self._engine, prompts, max_tokens))

    def profile(self, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        """Seconds that rank 0 spends in each operation of the plan over one `generate`, prefill and decode apart.

        What `wall_s` holds beyond `steps_s` is the engine's own work: scheduling, sampling, detokenising, and
        telling the other ranks.
        """
        passes: list[tuple[str, float, float]] = []

        def observe(step: Step, start_s: float, end_s: float) -> None:
            passes.append((step.op.label, start_s, end_s))

        runner = self._ranks.runner
        runner.observe, begin = observe, time.perf_counter()
        try:
            run = self.generate(prompts, max_tokens)
            if runner.streams is not None:
                runner.streams.collect()
        finally:
            runner.observe = None
        first = begin + run["first_s"]
        return {
            "prefill": _phase([p for p in passes if p[2] <= first], run["first_s"]),
            "decode": _phase([p for p in passes if p[2] > first], run["total_s"] - run["first_s"]),
        }

    def describe(self) -> dict[str, Any]:
        """The ranks as they are now, with their peak memory."""
        return dict(self._ranks.describe())


def _phase(passes: list[tuple[str, float, float]], wall_s: float) -> dict[str, Any]:
    steps: dict[str, float] = {}
    for op, start_s, end_s in passes:
        steps[op] = steps.get(op, 0.0) + end_s - start_s
    return {"wall_s": wall_s, "num_passes": sum(op == "embed" for op, *_ in passes), "steps_s": steps}


def operations() -> dict[str, Operation]:
    """The requests that the worker answers, by name."""
    system = InterlaceSystem()
    return {
        "load": system.load,
        "generate": system.generate,
        "profile": system.profile,
        "describe": system.describe,
    }
