"""The run: systems started once, checked against each other, then timed in turns (A B C, A B C, ...).

Within a round every system runs the same workload before the next workload begins, so that a slow phase of the
machine falls on all of them. The first round is a warm-up and leaves no sample.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.worker import Worker
from benchmarks.serve import correctness, systems
from benchmarks.serve.cold_start import time_to_first_token
from benchmarks.serve.interpreters import Interpreters
from benchmarks.serve.limits import ITEM_BYTES, Limits, Shapes
from benchmarks.serve.participant import Participant
from benchmarks.serve.systems import KINDS, Allowance, System
from benchmarks.serve.workloads import all_workloads, fitted
from emucxl.bench import machine
from interlace.cli.bench.workload import ServeWorkload, longest_sequence, whole_blocks
from interlace.errors import BenchError
from interlace.models.sources import LoadedModel, load_model

COLD_START_RANKS = {"cpu": (1, 2), "cuda": (1,)}  # by device
CHAT_TOKENS = 256  # room for the longest question of the correctness check
FOREIGN_CORES = 0.2  # busy beside the benchmark; more is worth a warning
Say = Callable[[str], None]


@dataclass(frozen=True)
class ServeOptions:
    """The choices of one run. Without Pythons for peers Interlace runs alone."""

    model: str = "smollm2"
    systems: tuple[str, ...] = ()  # names; none: the default ones that can run
    pythons: Interpreters = field(default_factory=Interpreters)
    rounds: int = 5
    threads: int = 2
    device: str = "cpu"
    is_quick: bool = False
    workloads: tuple[ServeWorkload, ...] = all_workloads(is_quick=False)

    def __post_init__(self) -> None:
        for name in ("rounds", "threads"):
            if getattr(self, name) < 1:
                raise BenchError(f"got {name}={getattr(self, name)}; expected at least 1")


@dataclass
class ServeRun:
    """Everything a run found out."""

    options: ServeOptions
    model: dict[str, Any]
    participants: list[Participant] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # system: why
    limits: Limits | None = None
    foreign_cores: list[float] = field(default_factory=list)  # busy while every system was stopped, per round
    cold_start_s: dict[int, list[float]] = field(default_factory=dict)  # by ranks
    profiles: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # system: workload: phases

    def participant(self, name: str) -> Participant | None:
        """The system called `name`, if it took part."""
        return next(
            (participant for participant in self.participants if participant.system.name == name), None
        )


def serve(options: ServeOptions, say: Say) -> ServeRun:
    """Run the benchmark; `say` is told what is going on.

    Raises: BenchError when Interlace is wrong or fails. A peer that fails is left out, with its reason.
    """
    model = load_model(options.model)
    chosen = systems.choose(options.systems, options.pythons, options.device)
    options = replace(options, workloads=fitted(options.workloads, model.config.max_position))
    run = ServeRun(options, _model_facts(model))
    run.limits = Limits(Shapes.of(model.config), options.threads, device=options.device)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interlace-bench-")))
        limits_worker = Worker(sys.executable, "limits")
        stack.callback(limits_worker.close)
        stack.callback(_leave, run)
        limits_worker.pause()
        _start_systems(run, chosen, model, directory, say)
        _check(run, model, say)
        _rounds(run, model.config.vocab_size, limits_worker, say)
        if options.device == "cpu":
            _profile(run, model.config.vocab_size, say)
        _cold_starts(run, say)
        for participant in run.participants:
            participant.memory_bytes = participant.worker.memory_bytes()
    return run


def _leave(run: ServeRun) -> None:
    for participant in run.participants:
        participant.worker.close()


def _start_systems(
    run: ServeRun, chosen: list[System], model: LoadedModel, directory: Path, say: Say
) -> None:
    options = run.options
    room = max(longest_sequence(options.workloads), CHAT_TOKENS + correctness.NUM_TOKENS)
    may_use = Allowance(options.threads, max_model_len=whole_blocks(room), device=options.device)
    for system in sorted(chosen, key=lambda system: KINDS.index(system.kind)):
        say(f"starting {system.name}")
        python = options.pythons.of(system) or sys.executable
        with _peer_may_fail(run, system, say):
            path = model_for(system, model, directory, python)
            run.participants.append(Participant.start(system, python, path, may_use, model.config.vocab_size))


def model_for(system: System, model: LoadedModel, directory: Path, python: str) -> str:
    """The model in the form the system reads; a GGUF file is exported once for those that need a directory."""
    form, is_directory = systems.model_form(system), model.path.is_dir()
    if form == "gguf" and is_directory:
        return str(_gguf_within(model.path, system))
    if form != "directory" or is_directory:
        return str(model.path)
    exported = directory / "model"
    if not exported.exists():
        worker = Worker(python, "hf")
        try:
            worker.ask("export", model=str(model.path), directory=str(exported))
        finally:
            worker.close()
    return str(exported)


def _gguf_within(directory: Path, system: System) -> Path:
    """The GGUF file of the same model that `make bench random-model` writes into its directory."""
    found = _ggufs_within(directory)
    if len(found) != 1:
        raise BenchError(
            f"{system.name} reads GGUF files; {directory} has {len(found)} in its folder gguf, expected one"
        )
    return found[0]


def _ggufs_within(directory: Path) -> list[Path]:
    return sorted(directory.glob("gguf/*.gguf"))


def _check(run: ServeRun, model: LoadedModel, say: Say) -> None:
    """Correctness first: compare every system's greedy tokens with the oracle's."""
    prompts = correctness.chat_prompts(model.tokenizer)
    oracle = run.participant("hf-f32") or next(
        (s for s in run.participants if s.system.dtype == "float32"), None
    )
    if oracle is None:
        say("no float32 system takes part: tokens are not compared")
        return
    say(f"comparing greedy tokens with those of {oracle.system.name}")
    expected, margins = _answer(oracle, prompts, with_margins=oracle.system.kind == "hf")
    for participant in list(run.participants):
        with _peer_may_fail(run, participant.system, say):
            answers, _ = _answer(participant, prompts) if participant is not oracle else (expected, None)
            participant.agreement = correctness.compare(answers, expected)
            if participant.system.dtype == "float32":
                correctness.check_exact(participant.system.name, answers, expected, margins)


def _answer(
    participant: Participant, prompts: list[list[int]], with_margins: bool = False
) -> tuple[list[list[int]], list[list[float]] | None]:
    extra = {"margins": True} if with_margins else {}
    replies = [
        participant.ask("generate", prompts=[prompt], max_tokens=correctness.NUM_TOKENS, **extra)
        for prompt in prompts
    ]
    margins = [reply["margins"][0] for reply in replies] if with_margins else None
    return [reply["tokens"][0] for reply in replies], margins


def _rounds(run: ServeRun, vocab_size: int, limits_worker: Worker, say: Say) -> None:
    dtypes = sorted({participant.system.dtype for participant in run.participants} & ITEM_BYTES.keys())
    for number in range(run.options.rounds + 1):
        say(f"round {number} of {run.options.rounds}" if number else "warm-up round")
        _watch_others(run, say)
        for workload in run.options.workloads:
            for participant in list(run.participants):
                with _peer_may_fail(run, participant.system, say):
                    rate = participant.measure(workload, vocab_size, seed=number)
                    if number:
                        participant.samples.setdefault(workload.name, []).append(rate)
        if number and run.limits is not None:
            tokens = tuple(w.prompt_tokens for w in run.options.workloads if w.measure == "prefill")
            run.limits.sample(limits_worker, dtypes, tokens)


def _watch_others(run: ServeRun, say: Say) -> None:
    busy = machine.busy_cores()
    run.foreign_cores.append(busy)
    if busy > FOREIGN_CORES:
        say(f"something else keeps {busy:.1f} cores busy: speeds will be too low and noisy")


def _profile(run: ServeRun, vocab_size: int, say: Say) -> None:
    """Where Interlace's time goes, in runs of their own: timing every step costs a little.

    On CPUs alone: a GPU's steps are in a trace (`interlace generate --trace`).
    """
    for participant in run.participants:
        if participant.system.is_peer:
            continue
        say(f"profiling {participant.system.name}")
        for workload in run.options.workloads:
            prompts = workload.prompts(vocab_size, seed=0)
            phases = participant.ask("profile", prompts=prompts, max_tokens=workload.output_tokens)
            run.profiles.setdefault(participant.system.name, {})[workload.name] = phases


def _cold_starts(run: ServeRun, say: Say) -> None:
    for number in range(run.options.rounds):
        for tp in COLD_START_RANKS[run.options.device]:
            say(f"cold start {number + 1} of {run.options.rounds}, {tp} rank{'s' if tp > 1 else ''}")
            run.cold_start_s.setdefault(tp, []).append(
                time_to_first_token(run.options.model, tp, run.options.device)
            )


@contextlib.contextmanager
def _peer_may_fail(run: ServeRun, system: System, say: Say) -> Iterator[None]:
    """A peer that fails inside the block leaves the table; Interlace failing ends the run."""
    try:
        yield
    except BenchError as error:
        if not system.is_peer:
            raise
        reason = f"{error}{systems.remedy(system, str(error))}"
        say(f"{system.name} is left out: {reason}")
        run.left_out[system.name] = reason
        if (participant := run.participant(system.name)) is not None:
            run.participants.remove(participant)
            participant.worker.close()


def _model_facts(model: LoadedModel) -> dict[str, Any]:
    config = model.config
    names = (
        "family",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
    )
    facts = {name: getattr(config, name) for name in names}
    stored = _ggufs_within(model.path) if model.path.is_dir() else model.weights.files
    if stored:
        facts["stored_bytes"] = sum(file.stat().st_size for file in stored)
    is_path = Path(model.name).exists()  # its last part alone: records are published
    return {"name": model.path.name if is_path else model.name, "file": model.path.name, **facts}
