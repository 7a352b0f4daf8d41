"""The floor of a workload: the least time that this machine's arithmetic and memory leave possible (a roofline).

A pass takes at least its operations over the measured rate of a loop of nothing but multiply-adds, and at least the
bytes of weights, keys and values over the measured rate of reading. Williams, Waterman and Patterson, "Roofline", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from benchmarks.serve.limits import ITEM_BYTES, Limits
from benchmarks.serve.systems import KEPT_BESIDE_STORED, STORED
from interlace.cli.bench.workload import ServeWorkload


@dataclass(frozen=True)
class Floor:
    """The rate that a workload cannot exceed, in its own unit, and what holds it there: "arithmetic" or "memory"."""

    tokens_per_s: float
    bound_by: str


def floor_of(limits: Limits, workload: ServeWorkload, dtype: str, stored_bytes: int | None) -> Floor | None:
    """The floor of a system that keeps its weights in `dtype`; `stored_bytes` are those of weights as stored.

    None where there is none to tell: no loop was measured, or weights are multiplied as they are stored, at a rate of
    integers that no loop here measures, in a workload that arithmetic bounds.
    """
    rate = None if dtype == STORED else _peak(limits, dtype)
    if rate is None and (dtype != STORED or stored_bytes is None or workload.measure != "decode"):
        return None
    phases = []
    if workload.measure != "decode":
        phases.append(_phase_s(limits, rate, dtype, stored_bytes, workload.batch, workload.prompt_tokens, 0))
    if workload.measure != "prefill":
        context = workload.prompt_tokens + workload.output_tokens // 2
        step_s, bound_by = _phase_s(limits, rate, dtype, stored_bytes, workload.batch, 1, context)
        phases.append((step_s * (workload.output_tokens - 1), bound_by))
    seconds, bound_by = sum(s for s, _ in phases), max(phases)[1]
    tokens = workload.prompt_tokens if workload.measure == "prefill" else workload.output_tokens
    tokens -= workload.measure == "decode"  # the first token is the prefill's
    return Floor(workload.batch * tokens / seconds, bound_by)


def _phase_s(
    limits: Limits,
    rate: float | None,
    dtype: str,
    stored_bytes: int | None,
    batch: int,
    tokens: int,
    first_position: int,
) -> tuple[float, str]:
    """The least seconds of one pass, and what bounds it: memory alone where no rate of arithmetic is known."""
    shapes = limits.shapes
    kept = KEPT_BESIDE_STORED if dtype == STORED else dtype
    size_bytes = shapes.step_bytes(kept, batch, first_position, stored_bytes if dtype == STORED else None)
    in_memory = (size_bytes / median(limits.read_bytes_per_s), "memory")
    if rate is None:
        return in_memory
    return max(in_memory, (shapes.pass_flops(batch, tokens, first_position) / rate, "arithmetic"))


def _peak(limits: Limits, dtype: str) -> float | None:
    """Operations per second on `dtype`. Half-size floats can always be widened, so float32's rate is open to them."""
    rates = {loop: median(samples) for loop, samples in limits.peak_flops_per_s.items()}
    wanted = [rate for loop, rate in rates.items() if loop == "fma" or ITEM_BYTES[dtype] == 2]
    return max(wanted, default=None)
