"""The record of a run: the machine, the commit, the shapes, every sample."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.harness.target import Target
from benchmarks.serve.drive import ServeRun
from benchmarks.serve.floor import floor_of
from benchmarks.serve.participant import Participant
from benchmarks.serve.targets import targets
from emucxl.bench import harness, machine
from emucxl.bench.harness import Samples


def to_json(run: ServeRun) -> dict[str, Any]:
    """Everything a reader needs to judge the figures or to work them out again."""
    return {
        "benchmark": "serve",
        "format": harness.FORMAT,
        "source": machine.source(),
        "machine": machine.describe(),
        "model": run.model,
        "is_quick": run.options.is_quick,
        "threads": run.options.threads,
        "device": run.options.device,
        "rounds": run.options.rounds,
        "warm_up_rounds": 1,
        "foreign_cores": run.foreign_cores,
        "workloads": [
            {"name": workload.name, **asdict(workload), "unit": workload.unit}
            for workload in run.options.workloads
        ],
        "systems": [_participant(run, participant) for participant in run.participants],
        "left_out": run.left_out,
        "limits": run.limits.to_json() if run.limits is not None else None,
        "cold_start": [
            {"ranks": tp, "seconds": samples, "summary": _summary(Samples(tuple(samples)))}
            for tp, samples in run.cold_start_s.items()
        ],
        "profiles": run.profiles,
        "targets": [_target(target) for target in targets(run)],
    }


def _participant(run: ServeRun, participant: Participant) -> dict[str, Any]:
    return {
        **asdict(participant.system),
        "loaded": participant.loaded,
        "start_to_first_tokens_s": participant.start_s,
        "memory_bytes": participant.memory_bytes,
        "agreement": participant.agreement.to_json() if participant.agreement else None,
        "samples": participant.samples,
        "summary": {w.name: _summary(participant.rates(w)) for w in run.options.workloads},
        "floors": _floors(run, participant.system.dtype),
    }


def _floors(run: ServeRun, dtype: str) -> dict[str, dict[str, Any]]:
    if run.limits is None or not run.limits.read_bytes_per_s:
        return {}
    stored_bytes = run.model.get("stored_bytes")
    floors = {w.name: floor_of(run.limits, w, dtype, stored_bytes) for w in run.options.workloads}
    return {name: asdict(floor) for name, floor in floors.items() if floor is not None}


def _target(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "got": _summary(target.got),
        "wanted": target.wanted,
        "at_most": target.at_most,
        "is_met": target.is_met,
    }


def _summary(samples: Samples) -> dict[str, float]:
    """Median and extremes: with a few rounds there is nothing between them."""
    return {
        "median": samples.median,
        "low": samples.lowest,
        "high": samples.highest,
        "num_samples": len(samples.values),
    }
