"""The JSON object that `interlace plan show --json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenweave.plan import Op

if TYPE_CHECKING:
    from interlace.cli.plan_timeline import PlanTimelines
    from interlace.cli.plan_work import Workload
    from tokenweave.plan import Plan, Step


def totals_of(plan: Plan, workload: Workload) -> dict[str, int]:
    """The sums over all steps of one rank."""
    works = [(step, workload.of(step)) for step in plan.steps]
    reduced = [work.bytes_given for step, work in works if step.op is Op.REDUCE_NORM and work.bytes_given]
    return {
        "flops": sum(work.flops for _, work in works),
        "reductions": len(reduced),
        "reduced_bytes": sum(reduced),
        "moved_bytes": sum(work.bytes_moved for _, work in works),
    }


def json_object(
    model: str, plan: Plan, workloads: list[Workload], rank: int, timelines: PlanTimelines
) -> dict[str, Any]:
    """Every step, with what it asks of `rank` and when it would run."""
    workload = workloads[rank]
    return {
        "model": model,
        "num_tokens": plan.num_tokens,
        "num_fetched_tokens": workload.moves.num_fetched_tokens,
        "tp": len(workloads),
        "dtype": workload.dtype,
        "weight_formats": workload.format_names,
        "rank": rank,
        "ranks": [_rank_object(each) for each in workloads],
        "split": plan.split,
        "steps": [
            {**_step_object(each.position, each.step, workload), "start_s": each.start_s, "end_s": each.end_s}
            for each in timelines.own.intervals
        ],
        "totals": totals_of(plan, workload),
        "modelled": timelines.to_json(),
    }


def _rank_object(workload: Workload) -> dict[str, Any]:
    shard = workload.shard
    return {
        "rank": shard.rank,
        "heads": len(shard.heads),
        "kv_heads": len(shard.kv_heads),
        "mlp_columns": len(shard.intermediate),
        "vocabulary_rows": len(shard.vocab),
        "weights_bytes": workload.weights_bytes,
        "kv_bytes_per_token": workload.kv_bytes_per_token,
    }


def _step_object(position: int, step: Step, workload: Workload) -> dict[str, Any]:
    work = workload.of(step)
    return {
        "step": position,
        "lane": step.lane.value,
        "operation": step.name,
        "layer": step.layer,
        "part": step.part,
        "num_tokens": len(workload.rows(step)),
        "waits_for": list(step.waits_for),
        "gemms": [{"name": g.name, "m": g.m, "k": g.k, "n": g.n, "times": g.times} for g in work.gemms],
        "flops": work.flops,
        "bytes_given": work.bytes_given,
        "bytes_moved": work.bytes_moved,
    }
