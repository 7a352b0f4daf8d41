"""A system that takes part: its worker, what it said when it loaded, and its samples."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.worker import Worker, turn
from benchmarks.serve.correctness import Agreement
from benchmarks.serve.systems import Allowance, System, environment, load_arguments
from emucxl.bench.harness import Samples
from interlace.cli.bench.workload import WARM_UP, Generated, ServeWorkload


@dataclass
class Participant:
    """One system that takes part. It runs only inside `measure` and `ask`, and is stopped otherwise."""

    system: System
    worker: Worker
    loaded: dict[str, Any]
    start_s: float  # from the start of its process to its first tokens
    samples: dict[str, list[float]] = field(default_factory=dict)  # tokens/s by workload
    agreement: Agreement | None = None
    memory_bytes: int = 0

    @classmethod
    def start(
        cls, system: System, python: str, model: str, machine: Allowance, vocab_size: int
    ) -> Participant:
        """Start the system and have it generate once.

        Raises: BenchError with its own words when it cannot.
        """
        worker = Worker(python, system.kind, environment(system, machine))
        try:
            loaded = worker.ask("load", **load_arguments(system, model, machine))
            _generate(worker, WARM_UP, vocab_size, seed=0)
            participant = cls(system, worker, loaded, time.perf_counter() - worker.started_at)
        except BaseException:
            worker.close()
            raise
        worker.pause()
        return participant

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request in the system's own turn."""
        with turn(self.worker):
            return self.worker.ask(op, **arguments)

    def measure(self, workload: ServeWorkload, vocab_size: int, seed: int) -> float:
        """One sample in tokens/s; a short untimed run first wakes what slept while others had their turns."""
        with turn(self.worker):
            _generate(self.worker, WARM_UP, vocab_size, seed)
            return workload.rate(_generate(self.worker, workload, vocab_size, seed))

    def rates(self, workload: ServeWorkload) -> Samples:
        """A workload's samples, in tokens/s."""
        return Samples(tuple(self.samples[workload.name]))


def _generate(worker: Worker, workload: ServeWorkload, vocab_size: int, seed: int) -> Generated:
    prompts = workload.prompts(vocab_size, seed)
    run = Generated.from_reply(worker.ask("generate", prompts=prompts, max_tokens=workload.output_tokens))
    workload.check(run)
    return run
