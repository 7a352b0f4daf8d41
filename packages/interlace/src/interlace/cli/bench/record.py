"""A run as JSON: the machine, the commit, the shapes, every sample."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emucxl.bench import machine
from interlace.cli.bench.drive import ServeRun
from interlace.cli.bench.seat import Seat
from interlace.cli.bench.summary import Summary
from interlace.cli.bench.targets import Target, targets

FORMAT = 1


def to_json(run: ServeRun) -> dict[str, Any]:
    """Everything a reader needs to judge the figures or to work them out again."""
    return {
        "benchmark": "serve",
        "format": FORMAT,
        "source": machine.source(),
        "machine": machine.describe(),
        "model": run.model,
        "is_quick": run.options.is_quick,
        "threads": run.options.threads,
        "rounds": run.options.rounds,
        "warm_up_rounds": 1,
        "foreign_cores": run.foreign_cores,
        "workloads": [
            {"name": workload.name, **asdict(workload), "unit": workload.unit}
            for workload in run.options.workloads
        ],
        "systems": [_seat(run, seat) for seat in run.seats],
        "left_out": run.left_out,
        "limits": run.limits.to_json() if run.limits is not None else None,
        "cold_start": [
            {"ranks": tp, "seconds": samples, "summary": Summary.of(samples).to_json()}
            for tp, samples in run.cold_start_s.items()
        ],
        "profiles": run.profiles,
        "targets": [_target(target) for target in targets(run)],
    }


def write(result: dict[str, Any], directory: Path) -> Path:
    """Write `result` to `directory/<machine>/serve.json`; returns the file."""
    path = directory / machine.slug() / ("serve-quick.json" if result["is_quick"] else "serve.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _seat(run: ServeRun, seat: Seat) -> dict[str, Any]:
    return {
        **asdict(seat.system),
        "loaded": seat.loaded,
        "start_to_first_tokens_s": seat.start_s,
        "memory_bytes": seat.memory_bytes,
        "agreement": seat.agreement.to_json() if seat.agreement else None,
        "samples": seat.samples,
        "summary": {w.name: seat.summary(w).to_json() for w in run.options.workloads},
    }


def _target(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "got": target.got.to_json(),
        "wanted": target.wanted,
        "at_most": target.at_most,
        "is_met": target.is_met,
    }
