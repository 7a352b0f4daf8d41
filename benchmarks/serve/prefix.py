"""Found prefixes: the time to the first token of a prompt that is computed, and of one that is found.

Every system keeps what it has computed. In each round a system gets a prompt that it has not seen, and then others that
begin with the same tokens and end with tokens of their own: all but these are found. Systems take turns.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.serve.drive import model_for
from benchmarks.serve.interpreters import Interpreters
from benchmarks.serve.participant import Participant
from benchmarks.serve.systems import SYSTEMS, Allowance, System
from emucxl.bench.harness import Progress, Report, Samples
from interlace.cli.bench.workload import PrefixShapes, whole_blocks
from interlace.errors import BenchError
from interlace.models.sources import LoadedModel, load_model

NAMES = ("interlace-stored", "interlace-bf16", "vllm-bf16")
NUM_FOUND, NUM_OWN = 2048, 64
QUICK_FOUND, QUICK_OWN = 64, 16
HITS_PER_ROUND = 3
NUM_CHECKED = 8  # tokens of an answer


@dataclass
class Times:
    """Milliseconds to the first token, a value for each round."""

    computed_ms: list[float] = field(default_factory=list)
    found_ms: list[float] = field(default_factory=list)


def run(
    model: str,
    pythons: Interpreters,
    threads: int,
    rounds: int,
    quick: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Interlace, and vLLM where `pythons` have it.

    Raises:
        BenchError: a system fails, or Interlace answers a prompt that it found otherwise than when it computed it.
    """
    shapes = PrefixShapes(QUICK_FOUND, QUICK_OWN) if quick else PrefixShapes(NUM_FOUND, NUM_OWN)
    loaded = load_model(model)
    named = {system.name: system for system in SYSTEMS}
    chosen = [named[name] for name in NAMES if pythons.of(named[name]) is not None]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interlace-bench-")))
        taking_part = []
        for system in chosen:
            if progress is not None:
                progress(0.0, f"starting {system.name}")
            taking_part.append(start(system, loaded, directory, pythons, threads, shapes))
            stack.callback(taking_part[-1].worker.close)
        return report(
            model, measure(taking_part, shapes, loaded.config.vocab_size, rounds, progress), shapes, threads
        )


def start(
    system: System,
    model: LoadedModel,
    directory: Path,
    pythons: Interpreters,
    threads: int,
    shapes: PrefixShapes,
) -> Participant:
    """Starts a system that keeps what it has computed."""
    room = whole_blocks(shapes.num_tokens + NUM_CHECKED)
    machine = Allowance(threads, max_model_len=room, prefix_cache=True)
    python = pythons.of(system) or sys.executable
    path = model_for(system, model, directory, python)
    return Participant.start(system, python, path, machine, model.config.vocab_size)


def measure(
    taking_part: Sequence[Participant],
    shapes: PrefixShapes,
    vocab_size: int,
    rounds: int,
    progress: Progress | None = None,
) -> dict[str, Times]:
    """The times of each system. Answers are checked first."""
    for participant in taking_part:
        _check(participant, shapes.prompt(0, 0, vocab_size))
    found = {participant.system.name: Times() for participant in taking_part}
    for number in range(1, rounds + 1):
        for place, participant in enumerate(taking_part):
            name = participant.system.name
            if progress is not None:
                progress((number - 1 + place / len(taking_part)) / rounds, name)
            computed, *others = (
                1e3 * first_s(participant, shapes.prompt(number, end, vocab_size))
                for end in range(1 + HITS_PER_ROUND)
            )
            found[name].computed_ms.append(computed)
            found[name].found_ms.append(median(others))
    return found


def _check(participant: Participant, prompt: list[int]) -> None:
    """Raises BenchError where Interlace's answer changes when its prompt is found."""
    answers = [
        participant.ask("generate", prompts=[prompt], max_tokens=NUM_CHECKED)["tokens"] for _ in range(2)
    ]
    if answers[0] != answers[1] and not participant.system.is_peer:
        raise BenchError(
            f"{participant.system.name} answered {answers[0]}, and {answers[1]} when it had found the prompt; expected "
            "the same"
        )


def first_s(participant: Participant, prompt: list[int]) -> float:
    """Seconds to the first token of `prompt`."""
    reply = participant.ask("generate", prompts=[prompt], max_tokens=1)
    return float(reply["first_s"])


def report(model: str, found: dict[str, Times], shapes: PrefixShapes, threads: int) -> Report:
    """One row for each system."""
    rows, results = [], dict[str, object]()
    peer = found.get("vllm-bf16")
    for name, times in found.items():
        computed, hit = Samples(tuple(times.computed_ms)), Samples(tuple(times.found_ms))
        ratio = hit.over(computed)
        beside = None if peer is None or times is peer else hit.over(Samples(tuple(peer.found_ms)))
        rows.append(
            (
                name,
                computed.extremes_text(1),
                hit.extremes_text(1),
                ratio.extremes_text(3),
                "" if beside is None else beside.extremes_text(2),
            )
        )
        results[name] = {
            "computed": computed.to_json("ms"),
            "found": hit.to_json("ms"),
            "found_over_computed": ratio.to_json("1"),
            "found_over_vllm": None if beside is None else beside.to_json("1"),
        }
    return Report(
        name="prefix",
        title=f"{model}: time to the first token of {shapes.num_tokens} tokens, of which {shapes.num_found} are found; "
        f"{threads} threads (measured)",
        columns=("system", "computed ms", "found ms", "found / computed", "found / vLLM's"),
        rows=tuple(rows),
        notes=(
            f"medians (extremes) over {len(next(iter(found.values())).found_ms)} rounds; systems take turns; every "
            "prompt is new, in each round the first is computed and three others are found",
        ),
        results={
            "model": model,
            "threads": threads,
            "num_found": shapes.num_found,
            "num_own": shapes.num_own,
            **results,
        },
    )
