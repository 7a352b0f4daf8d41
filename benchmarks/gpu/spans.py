"""Spans: what ran on the device and when, from a trace of torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of events in the profiler's traces
PRODUCT, ATTENTION, REDUCTION, OTHER = "product", "attention", "reduction", "other"
# By parts of kernels' names, the first that fits: those of the fused operation, of attention, of cuBLAS.
KINDS = {
    REDUCTION: ("peer_kernel", "one_shot_kernel", "multimem_kernel", "nccl"),
    ATTENTION: ("attend", "join_partitions", "attention", "flash", "fmha"),
    PRODUCT: ("gemm", "gemv", "cutlass", "nvjet", "xmma", "splitk"),
}


@dataclass(frozen=True)
class Span:
    """One kernel or copy, in microseconds of the trace."""

    name: str
    begin_us: float
    end_us: float
    stream: int

    @property
    def kind(self) -> str:
        name = self.name.lower()
        return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), OTHER)


def spans_of(trace: dict[str, Any]) -> list[Span]:
    """The spans of a trace in Chrome's format, in the order in which they began; the first begins at 0."""
    events = [each for each in trace["traceEvents"] if each.get("cat") in ON_DEVICE]
    first_us = min((each["ts"] for each in events), default=0.0)
    found = [
        Span(
            each["name"][:80],
            round(each["ts"] - first_us, 3),
            round(each["ts"] + each["dur"] - first_us, 3),
            int(each["args"]["stream"]),
        )
        for each in events
    ]
    return sorted(found, key=lambda span: span.begin_us)


def profiled(
    call: Callable[[], object], synchronize: Callable[[], None], path: Path, has_gpu: bool
) -> list[Span]:
    """The spans of one `call`, whose trace is kept at `path` (.json.gz). What the device has to do is waited for."""
    import gzip
    import json

    from torch.profiler import ProfilerActivity, profile

    synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
    with profile(activities=activities) as profiler:
        call()
        synchronize()
    profiler.export_chrome_trace(str(path))
    with gzip.open(path, "rt") as file:
        return spans_of(json.load(file))


def covered_us(spans: Iterable[Span], by: Iterable[Span]) -> float:
    """How long at least one of `spans` and at least one of `by` ran, in microseconds."""
    edges = sorted([*_edges(spans, 0), *_edges(by, 1)])
    running, total_us = [0, 0], 0.0
    for (at_us, which, change), (next_us, *_) in pairwise([*edges, (0.0, 0, 0)]):
        running[which] += change
        if all(running):
            total_us += next_us - at_us
    return total_us


def busy_us(spans: Sequence[Span]) -> float:
    """How long at least one of them ran."""
    return covered_us(spans, spans)


def _edges(spans: Iterable[Span], which: int) -> Iterator[tuple[float, int, int]]:
    for span in spans:
        yield span.begin_us, which, 1
        yield span.end_us, which, -1
