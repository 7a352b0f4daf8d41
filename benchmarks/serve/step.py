"""`make bench step`: what a decode step takes beside the native code, from Python and from handing over.

The whole of LLM runs as for any caller: scheduling, the batch, the pass, sampling, text, and the way of each token to
the loop that waits for it. Every function of the native library is wrapped by one that reads the clock, and so are
some of the engine; what a step takes beyond the native functions is Python's. Reading the clock counts as that, too.
"""

from __future__ import annotations

import functools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from emucxl.bench.harness import Progress, Report, part_of
from interlace.errors import BenchError
from tokenweave import native

if TYPE_CHECKING:
    from interlace import LLM

BATCHES = (1, 8)
NUM_PROMPT, NUM_STEPS, NUM_WARM_UP = (
    128,
    64,
    8,
)  # tokens of a prompt; decode steps, of which the first do not count
QUICK_PROMPT, QUICK_STEPS = 8, 12
MAX_PROMPT_ID = 256  # prompts are of ids below, which every model has
NATIVE = "native"
OTHER = "hand-over"  # all that no other phase has: the caller's loop, its mailbox, chunks, counting
# Phases of a step, and where the functions are that each consists of: module, owner in it or "", name.
PHASES = {
    "schedule": (
        ("interlace.engine.scheduler", "Scheduler", "schedule"),
        ("interlace.engine.scheduler", "Scheduler", "commit"),
    ),
    "batch": (("interlace.engine.engine", "", "build_batch"),),
    "pass": (("interlace.engine.ranks.group", "RankGroup", "execute"),),
    "sampling": (("interlace.engine.sampler", "HostSampler", "sample"),),
    "text": (("interlace.engine.text", "TextAssembler", "push"),),
}
Counts = dict[str, float]  # seconds of each phase


class Stopwatch:
    """Adds up the time that is spent in each phase, and not in a phase that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner_s = 0.0  # of the phases called so far by the phase that runs

    def timing(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            outer_s, self._inner_s = self._inner_s, 0.0
            start_s = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                whole_s = time.perf_counter() - start_s
                self.seconds[phase] += whole_s - self._inner_s
                self._inner_s = outer_s + whole_s

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times the native library and the phases of the engine inside."""
        import importlib

        library = native.load()
        with ExitStack() as stack:
            for name in native.SIGNATURES:
                _replace(stack, library, name, self.timing(NATIVE, getattr(library, name)))
            for phase, places in PHASES.items():
                for module, owner, name in places:
                    holder: Any = importlib.import_module(module)
                    holder = getattr(holder, owner) if owner else holder
                    _replace(stack, holder, name, self.timing(phase, getattr(holder, name)))
            yield


def _replace(stack: ExitStack, holder: Any, name: str, value: object) -> None:
    stack.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)


@dataclass(frozen=True)
class StepFigures:
    """The figures of one case: medians over its steps."""

    weights: str
    batch: int
    step_ms: float
    native_ms: float
    python_fraction: float
    phases_us: dict[str, float]  # what Python takes, by phase
    num_steps: int

    @classmethod
    def of(cls, weights: str, batch: int, steps: Sequence[Counts]) -> StepFigures:
        """From what each step took: its phases, the native one among them, make up the whole."""
        wholes = [sum(step.values()) for step in steps]
        fractions = [1 - step.get(NATIVE, 0.0) / whole for step, whole in zip(steps, wholes, strict=True)]
        phases = {phase: 1e6 * median(step.get(phase, 0.0) for step in steps) for phase in (*PHASES, OTHER)}
        native_ms = 1e3 * median(step.get(NATIVE, 0.0) for step in steps)
        return cls(weights, batch, 1e3 * median(wholes), native_ms, median(fractions), phases, len(steps))

    def row(self) -> tuple[str, ...]:
        python_us = sum(self.phases_us.values())
        return (
            self.weights,
            str(self.batch),
            f"{self.step_ms:.2f}",
            f"{self.native_ms:.2f}",
            f"{python_us:,.0f}",
            f"{self.python_fraction:.1%}",
            *(f"{value:,.0f}" for value in self.phases_us.values()),
        )


def decode_steps(llm: LLM, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[Counts]]:
    """Greedy tokens of each prompt, and what each step took in which all of them decoded.

    A step goes from the beginning of one scheduling to that of the next, so all that a caller's loop does is in one.
    """
    from interlace import SamplingParams
    from interlace.engine.scheduler import Scheduler

    watch, marks = Stopwatch(), list[tuple[float, Counts, int]]()
    with watch.watching(), ExitStack() as stack:
        schedule = Scheduler.schedule

        def marking(self: Scheduler) -> Any:
            marks.append((time.perf_counter(), dict(watch.seconds), 0))
            scheduled = schedule(self)
            moment_s, seconds, _ = marks[-1]
            marks[-1] = (moment_s, seconds, sum(item.sequence.num_output > 0 for item in scheduled))
            return scheduled

        _replace(stack, Scheduler, "schedule", marking)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        outputs = llm.generate(prompts, params)
    steps = [_between(one, other) for one, other in pairwise(marks) if one[2] == other[2] == len(prompts)]
    return [output.token_ids for output in outputs], steps


def _between(one: tuple[float, Counts, int], other: tuple[float, Counts, int]) -> Counts:
    """Seconds of each phase between two marks."""
    spent = {phase: value - one[1].get(phase, 0.0) for phase, value in other[1].items()}
    return {**spent, OTHER: other[0] - one[0] - sum(spent.values())}


def measure(
    model: str, weights: str, threads: int, batches: Sequence[int], num_prompt: int, num_steps: int
) -> list[StepFigures]:
    """One engine at each batch size.

    Raises: BenchError when a prompt's tokens are others beside other prompts than alone.
    """
    from interlace import LLM

    options: dict[str, Any] = (
        {"dtype": "float32", "quantize": weights} if weights == "stored" else {"dtype": weights}
    )
    numbers, found, alone = random.Random(0), [], None
    with LLM(model, threads=threads, prefix_cache=False, **options) as llm:
        prompts = [[numbers.randrange(MAX_PROMPT_ID) for _ in range(num_prompt)] for _ in range(max(batches))]
        for batch in batches:
            tokens, steps = decode_steps(llm, prompts[:batch], num_steps)
            alone = alone or tokens[0]
            if tokens[0] != alone:
                raise BenchError(
                    f"{weights}, batch {batch}: the first prompt's tokens are not those at batch 1"
                )
            found.append(StepFigures.of(weights, batch, steps[min(NUM_WARM_UP, len(steps) // 2) :]))
    return found


def run(model: str, threads: int, quick: bool = False, progress: Progress | None = None) -> Report:
    """Float32, bfloat16 where the machine multiplies it, and weights as they are stored."""
    from interlace.models.gguf.names import is_gguf
    from interlace.models.sources import resolve

    num_prompt, num_steps = (QUICK_PROMPT, QUICK_STEPS) if quick else (NUM_PROMPT, NUM_STEPS)
    has_bfloat16 = native.selected_isa() in ("avx512bf16", "amx")
    kinds = ["float32", *(["bfloat16"] if has_bfloat16 else [])]
    kinds += ["stored"] if is_gguf(resolve(model, quiet=True)) else []
    found: list[StepFigures] = []
    for place, weights in enumerate(kinds):
        told = part_of(progress, place, len(kinds))
        if told is not None:
            told(0.0, weights)
        found += measure(model, weights, threads, BATCHES, num_prompt, num_steps)
    return report(model, found, threads)


def report(model: str, found: Sequence[StepFigures], threads: int) -> Report:
    """One row for each case."""
    isa = native.selected_isa()
    return Report(
        name="step",
        title=f"{model}: Python and hand-over in a decode step, {threads} threads, {isa} (measured)",
        columns=(
            "weights",
            "batch",
            "step ms",
            "native ms",
            "Python us",
            "of step",
            *(f"{p} us" for p in (*PHASES, OTHER)),
        ),
        rows=tuple(figures.row() for figures in found),
        notes=(
            f"medians over the steps; prompts of {NUM_PROMPT} tokens, greedy; all but native: Python and its calls",
            "pass: tensors of the pass, and its calls; hand-over: the caller's loop, mailboxes, chunks, counting",
        ),
        results={
            "model": model,
            "threads": threads,
            "features": native.instruction_sets(),
            "cases": [asdict(figures) for figures in found],
        },
    )
