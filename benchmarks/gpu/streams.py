"""The stream executor: what a woven plan costs the host; woven gives what whole gives, on streams and in graphs.

The order of the kernels is read from torch's profiler, and kept as a trace that ui.perfetto.dev opens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.device import Device, check_close
from benchmarks.gpu.findings import Finding, StageFile, Verdict, asked
from benchmarks.gpu.spans import PRODUCT, REDUCTION, Span, busy_us, covered_us, profiled
from benchmarks.gpu.stack import Stack, StackInput, StackShape
from benchmarks.gpu.stage import StageJob
from emucxl.bench.harness import Samples, interleaved
from tokenweave.execute import run_sequential
from tokenweave.plan import Lane, Step, plan_forward
from tokenweave.streams import StreamExecutor

NUM_LAYERS = 80  # of Llama-3-70B
FULL = StackShape(2, num_layers=4, num_tokens=2048, hidden_size=4096, inner_size=4096, num_ctas=8)
DRY = StackShape(1, num_layers=1, num_tokens=4, hidden_size=32, inner_size=16, num_ctas=1)
BOUND = {torch.bfloat16: 2e-2, torch.float32: 1e-4}  # of the relative error


def run(job: StageJob) -> None:
    rounds = 1 if job.options.is_dry_run else 3 if job.options.is_quick else 9
    shape = DRY if job.options.is_dry_run else FULL
    host_costs(job.device, rounds, job.told)
    woven = woven_is_whole(job.device, shape, rounds, job.told)
    trace_of(woven, job)


def host_costs(device: Device, rounds: int, told: StageFile) -> None:
    """A woven plan of 80 layers whose steps do nothing, or next to nothing: the time until the host has issued it."""
    plan = plan_forward(NUM_LAYERS, 1024, 512)
    counters = {lane: torch.zeros(1, device=device.kind) for lane in Lane}  # lanes may run at once

    def add(step: Step) -> None:
        counters[step.lane].add_(1)

    def nothing(step: Step) -> None:
        pass

    executor: StreamExecutor[Any, Any] = StreamExecutor(device.streams())
    empty, small = (
        partial(executor.run, plan, dict.fromkeys(plan.ops, handler)) for handler in (nothing, add)
    )
    small()
    device.synchronize()
    num_run = sum(int(counter) for counter in counters.values())
    if num_run != len(plan.steps):
        raise ArithmeticError(f"{num_run} of {len(plan.steps)} steps ran")
    found = interleaved(
        {
            "of steps that do nothing": device.issued(empty),
            "of one small kernel a step": device.issued(small),
            "of one small kernel a step, in a graph": device.issued(device.captured(small)),
        },
        max(rounds, 2),
    )
    told.keep(
        host_us={name: samples.to_json("us") for name, samples in found.items()}, num_steps=len(plan.steps)
    )
    for name, samples in found.items():
        got = f"{samples.median:,.0f} us, {samples.median / len(plan.steps):.2f} a step"
        told.show(Finding(f"host, a woven plan of {NUM_LAYERS} layers {name}", got))


def woven_is_whole(device: Device, shape: StackShape, rounds: int, told: StageFile) -> Callable[[], None]:
    """Checks every way to run a stack against the others, then times them. Returns the woven run on streams."""
    given = StackInput.random(device, shape)
    whole = Stack(device, shape, given, None)
    woven = Stack(device, shape, given, shape.num_tokens // 2)
    executor: StreamExecutor[Any, Any] = StreamExecutor(device.streams())
    on_streams = partial(executor.run, woven.plan, woven.handlers)
    runs: dict[str, tuple[Stack, Callable[[], object]]] = {
        "whole": (whole, partial(run_sequential, whole.plan, whole.handlers)),
        "woven, one step after the other": (woven, partial(run_sequential, woven.plan, woven.handlers)),
        "woven on streams": (woven, on_streams),
        "whole in a graph": (
            whole,
            device.captured(partial(run_sequential, whole.plan, whole.handlers)),
        ),
        "woven in a graph": (woven, device.captured(on_streams)),
    }
    results = {name: result_of(device, stack, call) for name, (stack, call) in runs.items()}
    bound = BOUND[device.dtype]
    errors = {"reference": check_close("whole", results["whole"], given.reference(), bound)}
    for name, result in results.items():
        errors[name] = check_close(name, result, results["whole"], bound)
    oracle = results["woven, one step after the other"]
    same = {name: torch.equal(results[name], oracle) for name in ("woven on streams", "woven in a graph")}
    told.keep(relative_errors=errors, same_bits_as_sequential=same)
    worst = max(errors[name] for name in runs)
    got = f"off by {worst:.1e}; by {errors['reference']:.1e} from float32"
    told.show(asked("woven is whole, on streams and in graphs", got, f"< {bound:.0e}", worst < bound))
    bits = ", ".join(f"{name}: {'same bits' if each else 'not the same bits'}" for name, each in same.items())
    told.show(Finding("beside one step after the other", bits))
    times = interleaved({name: device.timed(call) for name, (_, call) in runs.items()}, rounds)
    for stack in (whole, woven):
        stack.check_all_came()
    told.keep(stack_us={name: samples.to_json("us") for name, samples in times.items()})
    told.show(gain_in_graphs(times))
    return on_streams


def result_of(device: Device, stack: Stack, call: Callable[[], object]) -> torch.Tensor:
    """The rows that one run gives; those of a run before it are gone."""
    stack.result.fill_(math.nan)
    call()
    device.synchronize()
    stack.check_all_came()
    return stack.result.clone()


def gain_in_graphs(times: dict[str, Samples]) -> Finding:
    gain = times["whole in a graph"].over(times["woven in a graph"])
    got = f"{gain.text(2)}; {times['woven in a graph'].text()} us"
    return Finding("whole over woven, both in graphs", got)


def trace_of(woven: Callable[[], None], job: StageJob) -> None:
    """Keeps the order of a woven run's kernels, and how much of the reductions ran beside products."""
    woven()
    path = job.options.artefact("trace.json.gz")
    spans = profiled(woven, job.device.synchronize, path, job.device.kind == "cuda")
    job.told.keep(kernels=[asdict(span) for span in spans], trace=path.name)
    what = f"reductions that ran beside products ({path.name})"
    job.told.show(beside_products(what, spans))
    if spans:
        from benchmarks.gpu.picture import (
            draw,
        )  # which finds `svg` where a stage does, among the documentation's

        about = f"four layers of products, woven over {FULL.size} ranks on one {job.device.name}"
        drawn = draw(spans, "The order of a woven run's kernels", about)
        job.options.artefact("kernels.svg").write_text(drawn)


def beside_products(what: str, spans: list[Span]) -> Finding:
    """How much of the reductions' time had a product beside it."""
    reductions = [span for span in spans if span.kind == REDUCTION]
    if not reductions:
        return Finding(what, "the profiler saw none", "", Verdict.NOT_RUN)
    products = [span for span in spans if span.kind == PRODUCT]
    total_us = busy_us(reductions)
    return Finding(what, f"{covered_us(reductions, products) / total_us:.0%} of {total_us:,.0f} us")
