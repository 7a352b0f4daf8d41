"""The Trace Event Format, which ui.perfetto.dev and chrome://tracing open: recordings as its events, and back."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from tokenweave.plan import Lane, Op, Plan, Step
from tokenweave.trace.recording import Pass, Recording, Span

THREADS = {lane: number for number, lane in enumerate(Lane)}


def events_of(recording: Recording, zero_s: float) -> Iterator[dict[str, Any]]:
    """One rank's events: its names, then its steps by the time they began."""
    yield _name("process", recording.rank, 0, f"rank {recording.rank}")
    yield {
        "ph": "M",
        "name": "process_sort_index",
        "pid": recording.rank,
        "args": {"sort_index": recording.rank},
    }
    spans = [(done, span) for done in recording.passes for span in done.spans()]
    used = {span.step.lane for _, span in spans}
    for lane, number in THREADS.items():
        if lane in used:
            yield _name("thread", recording.rank, number, lane.value)
    for done, span in sorted(spans, key=lambda pair: pair[1].start_s):
        yield _event(recording.rank, done, span, zero_s)


def _name(of: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": f"{of}_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _event(rank: int, done: Pass, span: Span, zero_s: float) -> dict[str, Any]:
    plan, step = done.plan, span.step
    num_tokens = plan.num_tokens if step.part is None else len(plan.parts[step.part])
    return {
        "ph": "X",
        "name": step.name,
        "cat": step.lane.value,
        "ts": round(1e6 * (span.start_s - zero_s), 3),
        "dur": round(1e6 * (span.end_s - span.start_s), 3),
        "pid": rank,
        "tid": THREADS[step.lane],
        "args": {
            "pass": done.number,
            "step": span.position,
            "op": step.op.label,
            "layer": step.layer,
            "norm": step.norm,
            "part": step.part,
            "waits_for": list(step.waits_for),
            "num_tokens": num_tokens,
            "of_tokens": plan.num_tokens,
            "split": plan.split,
        },
    }


def recordings_of(events: list[dict[str, Any]]) -> tuple[Recording, ...]:
    """The recordings of all ranks, from the events of all; KeyError and the like where an event is damaged."""
    found: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for event in events:
        if event["ph"] == "X":
            found.setdefault(event["pid"], {}).setdefault(event["args"]["pass"], []).append(event)
        elif event["name"] == "process_name":
            found.setdefault(event["pid"], {})
    known: dict[tuple[object, ...], Plan] = {}
    recordings = []
    for rank, passes in sorted(found.items()):
        whole = (_pass(number, passes[number], known) for number in sorted(passes))
        recordings.append(Recording(rank, tuple(each for each in whole if each is not None)))
    return tuple(recordings)


def _pass(number: int, events: list[dict[str, Any]], known: dict[tuple[object, ...], Plan]) -> Pass | None:
    """A pass from its events; None where steps are missing, because it failed. Passes of one shape share a plan."""
    events.sort(key=lambda event: int(event["args"]["step"]))
    if [event["args"]["step"] for event in events] != list(range(len(events))):
        return None
    steps = tuple(_step(event["args"]) for event in events)
    args = events[0]["args"]
    plan = known.setdefault(
        (args["of_tokens"], args["split"], steps), Plan(args["of_tokens"], steps, args["split"])
    )
    ends = ((1e-6 * event["ts"], 1e-6 * (event["ts"] + event["dur"])) for event in events)
    return Pass(number, plan, array("d", [second for both in ends for second in both]))


def _step(args: dict[str, Any]) -> Step:
    return Step(Op.named(args["op"]), tuple(args["waits_for"]), args["layer"], args["norm"], args["part"])
