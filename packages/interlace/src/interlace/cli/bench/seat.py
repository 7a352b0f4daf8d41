"""A system that takes part: its worker, what it said when it loaded, and its samples."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from interlace.cli.bench.correctness import Agreement
from interlace.cli.bench.summary import Summary
from interlace.cli.bench.systems import Machine, System, environment, load_arguments
from interlace.cli.bench.worker import Worker, turn
from interlace.cli.bench.workload import WARM_UP, Generated, Workload


@dataclass
class Seat:
    """One system at the table. It runs only inside `measure` and `ask`, and is stopped otherwise."""

    system: System
    worker: Worker
    loaded: dict[str, Any]
    start_s: float  # from the start of its process to its first tokens
    samples: dict[str, list[float]] = field(default_factory=dict)  # tokens/s by workload
    agreement: Agreement | None = None
    memory_bytes: int = 0

    @classmethod
    def take(cls, system: System, python: str, model: str, machine: Machine, vocab_size: int) -> Seat:
        """Start the system and have it generate once.

        Raises: BenchError with its own words when it cannot.
        """
        worker = Worker(python, system.kind, environment(system, machine))
        try:
            loaded = worker.ask("load", **load_arguments(system, model, machine))
            _generate(worker, WARM_UP, vocab_size, seed=0)
            seat = cls(system, worker, loaded, time.perf_counter() - worker.started_at)
        except BaseException:
            worker.close()
            raise
        worker.pause()
        return seat

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request in the system's own turn."""
        with turn(self.worker):
            return self.worker.ask(op, **arguments)

    def measure(self, workload: Workload, vocab_size: int, seed: int) -> float:
        """One sample in tokens/s; a short untimed run first wakes what slept while others had their turns."""
        with turn(self.worker):
            _generate(self.worker, WARM_UP, vocab_size, seed)
            return workload.rate(_generate(self.worker, workload, vocab_size, seed))

    def summary(self, workload: Workload) -> Summary:
        """Median and spread of a workload's samples."""
        return Summary.of(self.samples[workload.name])


def _generate(worker: Worker, workload: Workload, vocab_size: int, seed: int) -> Generated:
    prompts = workload.prompts(vocab_size, seed)
    run = Generated.from_reply(worker.ask("generate", prompts=prompts, max_tokens=workload.output_tokens))
    workload.check(run)
    return run
