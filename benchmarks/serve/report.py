"""Tables: speeds, ratios to the best peer, targets, limits, and where Interlace's time goes."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.serve.drive import ServeRun
from benchmarks.serve.limits import ITEM_BYTES, Limits
from benchmarks.serve.participant import Participant
from benchmarks.serve.systems import KEPT_BESIDE_STORED, STORED
from benchmarks.serve.targets import best_peer, ratio, targets
from interlace.cli.bench.workload import ServeWorkload


def tables(run: ServeRun) -> Iterator[Table]:
    """Every table that this run can fill."""
    yield speeds(run)
    yield setting_up(run)
    if any(participant.system.is_peer for participant in run.participants):
        yield ratios(run)
    if not run.options.is_quick:
        yield reached(run)
    if run.limits is not None:
        yield limits(run)
    for name, profiles in run.profiles.items():
        yield breakdown(name, profiles)


def speeds(run: ServeRun) -> Table:
    """Tokens per second: the median, and the extremes below it."""
    table = _table(f"Tokens per second, median of {run.options.rounds} rounds (lowest-highest)", "system")
    for workload in run.options.workloads:
        table.add_column(workload.name, justify="right")
    for participant in run.participants:
        table.add_row(
            participant.system.name, *(participant.rates(w).extremes_text() for w in run.options.workloads)
        )
    if run.foreign_cores:
        table.caption = f"Busy with other work meanwhile: up to {max(run.foreign_cores):.1f} cores"
    for name, reason in run.left_out.items():
        table.add_row(name, f"left out: {reason}"[:80])
    return table


def setting_up(run: ServeRun) -> Table:
    """The time and memory that each system took before it could be timed, and how its answers compare."""
    table = _table(
        "Systems", "system", "dtype", "ranks", "start to first tokens", "memory", "same greedy tokens"
    )
    for participant in run.participants:
        agreement = "not compared"
        if participant.agreement:
            same, prefix = participant.agreement.num_identical, participant.agreement.mean_prefix
            agreement = (
                f"{same} of {participant.agreement.num_prompts} prompts; {prefix:.1f} tokens on average"
            )
        system, memory = participant.system, f"{participant.memory_bytes / 1e6:,.0f} MB"
        table.add_row(
            system.name, system.dtype, str(system.ranks), f"{participant.start_s:.1f} s", memory, agreement
        )
    return table


def ratios(run: ServeRun) -> Table:
    """Interlace over the best peer of each workload, round by round."""
    table = _table(
        "Interlace over the best peer, median of the rounds' ratios (lowest-highest)", "workload", "peer"
    )
    ours = [participant for participant in run.participants if not participant.system.is_peer]
    for participant in ours:
        table.add_column(participant.system.name, justify="right")
    for workload in run.options.workloads:
        peer = best_peer(run, workload)
        if peer is not None:
            row = (ratio(participant, peer, workload).extremes_text(2) for participant in ours)
            table.add_row(workload.name, peer.system.name, *row)
    return table


def reached(run: ServeRun) -> Table:
    """Target by target."""
    table = _table("Targets", "target", "wanted", "got", "met")
    for target in targets(run):
        sign = "<=" if target.at_most else ">="
        got, met = target.got.extremes_text(2), "yes" if target.is_met else "no"
        table.add_row(target.name, f"{sign} {target.wanted}", got, met)
    return table


def limits(run: ServeRun) -> Table:
    """Fraction of the physical limit that each Interlace system reaches."""
    assert run.limits is not None
    read, copy = (median(x) / 1e9 for x in (run.limits.read_bytes_per_s, run.limits.copy_bytes_per_s))
    title = f"Physical limits (memory: {read:.1f} GB/s read, {copy:.1f} GB/s copied), tokens per second"
    table = _table(title, "workload", "system", "limit", "bound", "reached", "fraction")
    for workload in run.options.workloads:
        for participant in run.participants:
            bound = None if participant.system.is_peer else _bound(run, participant, workload)
            if bound is not None:
                rate = participant.rates(workload).median
                what, limit = bound
                row = (what, f"{limit:,.0f}", f"{rate:,.0f}", f"{rate / limit:.0%}")
                table.add_row(workload.name, participant.system.name, *row)
    return table


def gemm(limits: Limits) -> Table:
    """The speed of GEMM alone at the model's shapes, and the prefill it would allow."""
    table = _table(
        "GEMM alone, every weight of the model", "backend", "dtype", "tokens", "GFLOP/s", "tokens/s"
    )
    for (backend, dtype, tokens), samples in limits.gemm_s.items():
        seconds = median(samples)
        flops = limits.shapes.flops(tokens)
        table.add_row(
            backend, dtype, str(tokens), f"{flops / seconds / 1e9:,.0f}", f"{tokens / seconds:,.0f}"
        )
    return table


def memory(limits: Limits) -> Table:
    """The rate of the memory, and the decoding that it would allow."""
    read, copy = (median(x) / 1e9 for x in (limits.read_bytes_per_s, limits.copy_bytes_per_s))
    title = f"Memory: {read:.1f} GB/s read, {copy:.1f} GB/s copied"
    table = _table(title, "dtype", "weights", "decode batch 1", "decode batch 8")
    for dtype in ITEM_BYTES:
        rates = (f"{limits.decode_tokens_per_s(dtype, batch, context=0):,.0f} tokens/s" for batch in (1, 8))
        table.add_row(dtype, f"{limits.shapes.weight_bytes(dtype) / 1e6:,.0f} MB", *rates)
    return table


def _bound(run: ServeRun, participant: Participant, workload: ServeWorkload) -> tuple[str, float] | None:
    assert run.limits is not None
    if workload.measure == "prefill":
        limit = run.limits.prefill_tokens_per_s(participant.system.dtype, workload.prompt_tokens)
        return ("GEMM alone", limit) if limit is not None else None
    if workload.measure == "job":
        return None
    context = workload.prompt_tokens + workload.output_tokens // 2
    dtype, weight_bytes = participant.system.dtype, None
    if dtype == STORED:
        dtype, weight_bytes = KEPT_BESIDE_STORED, run.model["stored_bytes"]
    return "bytes from memory", run.limits.decode_tokens_per_s(dtype, workload.batch, context, weight_bytes)


def breakdown(system: str, profiles: dict[str, dict[str, Any]]) -> Table:
    """Share of the wall time in each operation of the plan; the rest is the engine's own."""
    phases = [
        (w, p, found) for w, both in profiles.items() for p, found in both.items() if found["num_passes"]
    ]
    ops = list(dict.fromkeys(op for *_, found in phases for op in found["steps_s"]))
    table = _table(f"Where the time goes: {system} (rank 0)", "workload", "phase", "ms per pass")
    for name in [*ops, "engine"]:
        table.add_column(name, justify="right")
    for workload, phase, found in phases:
        wall_s, steps_s = found["wall_s"], found["steps_s"]
        shares = [steps_s.get(op, 0.0) / wall_s for op in ops]
        cells = (f"{share:.1%}" for share in [*shares, 1.0 - sum(shares)])
        table.add_row(workload, phase, f"{1e3 * wall_s / found['num_passes']:.2f}", *cells)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    return table
