"""The shapes that `make bench serve` runs: those of `interlace bench`, a long prompt, and a large batch."""

from __future__ import annotations

from dataclasses import replace

from interlace.cli.bench.workload import FULL, QUICK, ServeWorkload
from interlace.errors import BenchError
from tokenweave.kernels import BLOCK_SIZE

LONG_PROMPT = ServeWorkload("prefill", 1, 8192, 1)
LARGE_BATCH = ServeWorkload("decode", 32, 128, 64)


def all_workloads(is_quick: bool) -> tuple[ServeWorkload, ...]:
    """Prefills first, then decodes, then the job."""
    if is_quick:
        return QUICK
    prefills, decodes, jobs = (
        tuple(w for w in FULL if w.measure == measure) for measure in ("prefill", "decode", "job")
    )
    return (*prefills, LONG_PROMPT, *decodes, LARGE_BATCH, *jobs)


def choose(names: tuple[str, ...], is_quick: bool) -> tuple[ServeWorkload, ...]:
    """The workloads called `names`, in the table's order; without names, all.

    Raises: BenchError for a name that is not one of theirs.
    """
    known = all_workloads(is_quick)
    if unknown := [name for name in names if name not in [workload.name for workload in known]]:
        raise BenchError(f"got workloads {unknown}; expected some of {[workload.name for workload in known]}")
    return tuple(workload for workload in known if not names or workload.name in names)


def fitted(workloads: tuple[ServeWorkload, ...], context: int) -> tuple[ServeWorkload, ...]:
    """The workloads with prompts cut to what `context` tokens leave for them, in whole blocks.

    Raises: BenchError where not even one block is left.
    """
    result = []
    for workload in workloads:
        room = (context - workload.output_tokens) // BLOCK_SIZE * BLOCK_SIZE
        if room < BLOCK_SIZE:
            raise BenchError(
                f"{workload.name} generates {workload.output_tokens} tokens; the model's context is {context}"
            )
        result.append(replace(workload, prompt_tokens=min(workload.prompt_tokens, room)))
    return tuple(dict.fromkeys(result))
