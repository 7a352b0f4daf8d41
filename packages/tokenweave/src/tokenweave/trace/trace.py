"""Traces: when each step of each rank ran, recorded by an executor's observer and written for Perfetto.

Nothing is attached, and nothing costs anything, until a recorder is. A `Recorder` then keeps two numbers for each step.
The ranks' recordings, joined on one clock, make a `Trace`: a JSON file that ui.perfetto.dev and chrome://tracing open,
with a process for each rank and a thread for each lane.

time.perf_counter is CLOCK_MONOTONIC on Linux, one clock for all processes of a host. Hosts are aligned by a barrier
that every rank left when recording began: to within the time that the barrier's end takes to reach them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenweave.errors import TraceError
from tokenweave.execute import Observer
from tokenweave.plan import Lane, Op, Plan, Step

MAX_STEPS = 1_000_000  # that a recorder keeps: 16 MB
VERSION = 1
THREADS = {lane: number for number, lane in enumerate(Lane)}
_HEAD = struct.Struct("<16sdqq")  # clock, mark, first pass, passes


@dataclass(frozen=True, slots=True)
class Span:
    """When a step ran, in seconds of a clock."""

    step: Step
    position: int  # in its plan
    start_s: float
    end_s: float


class Pass:
    """One run of a plan on one rank; a step that did not run has no times."""

    def __init__(self, number: int, plan: Plan, times: array[float] | None = None) -> None:
        """`times`: start and end of each step, in the order of the plan; NaN where unknown."""
        self.number, self.plan = number, plan
        self.times = array("d", [math.nan]) * (2 * len(plan.steps)) if times is None else times

    def observer(self) -> Observer:
        """Writes down each step's times. Each has its own place, so any lane's thread may call at any time."""
        place = {id(step): 2 * position for position, step in enumerate(self.plan.steps)}
        times = self.times

        def observe(step: Step, start: float, end: float) -> None:
            at = place[id(step)]
            times[at], times[at + 1] = start, end

        return observe

    def spans(self) -> Iterator[Span]:
        for position, step in enumerate(self.plan.steps):
            start_s, end_s = self.times[2 * position : 2 * position + 2]
            if not math.isnan(end_s):
                yield Span(step, position, start_s, end_s)


class Recorder:
    """The recording of one rank: the last runs of plans, up to `max_steps` steps in all.

    Thread safety: `observe` by one thread at a time; the observers it gives by any.
    """

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self.passes: deque[Pass] = deque()
        self.num_dropped = 0
        self._max_steps = max_steps
        self._num_steps = 0
        self.mark_s = time.perf_counter()

    def mark(self) -> None:
        """To be called on every rank when it leaves one and the same barrier."""
        self.mark_s = time.perf_counter()

    def observe(self, plan: Plan) -> Observer:
        """The observer for a run of `plan`, which follows those before it."""
        number = self.num_dropped + len(self.passes)
        self.passes.append(Pass(number, plan))
        self._num_steps += len(plan.steps)
        while self._num_steps > self._max_steps and len(self.passes) > 1:
            self._num_steps -= len(self.passes.popleft().plan.steps)
            self.num_dropped += 1
        return self.passes[-1].observer()

    def to_bytes(self) -> bytes:
        """The times alone: every rank runs the same plans in the same order."""
        head = _HEAD.pack(clock_id(), self.mark_s, self.num_dropped, len(self.passes))
        return b"".join([head, *(each.times.tobytes() for each in self.passes)])


@dataclass(frozen=True)
class Recording:
    """One rank's passes, in seconds of the trace's clock."""

    rank: int
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class Trace:
    """Every rank's recording. `clock` says how far times of two ranks can be compared."""

    recordings: tuple[Recording, ...]
    clock: str = "one host: one clock"
    num_dropped: int = 0  # passes, the first ones, that there was no room for

    @classmethod
    def join(cls, own: Recorder, messages: Sequence[bytes]) -> Trace:
        """`messages`: what `Recorder.to_bytes` gave on every rank, in rank order; `own` is one of theirs.

        Raises:
            TraceError: the ranks recorded different passes.
        """
        clock, mark_s, _, _ = _HEAD.unpack_from(messages[0])
        recordings, shared = [], True
        for rank, message in enumerate(messages):
            other_clock, other_mark_s, first, count = _HEAD.unpack_from(message)
            sizes = [16 * len(each.plan.steps) for each in own.passes]
            if (first, count) != (own.num_dropped, len(sizes)) or len(message) != _HEAD.size + sum(sizes):
                raise TraceError(
                    f"rank {rank} recorded {count} passes from pass {first}; this rank recorded {len(sizes)} from "
                    f"{own.num_dropped}: start and end the recording on all ranks between the same two passes"
                )
            is_same = other_clock == clock
            shared = shared and is_same
            recordings.append(_read(rank, own, message, 0.0 if is_same else mark_s - other_mark_s))
        aligned = "several hosts: aligned at a barrier when recording began"
        return cls(tuple(recordings), cls.clock if shared else aligned, own.num_dropped)

    def to_json(self) -> dict[str, Any]:
        """The trace in the Trace Event Format, times in microseconds from the first step's start."""
        spans = (span for each in self.recordings for done in each.passes for span in done.spans())
        zero_s = min((span.start_s for span in spans), default=0.0)
        events = [event for recording in self.recordings for event in _events(recording, zero_s)]
        told = {"tokenweave_trace": VERSION, "clock": self.clock, "dropped_passes": self.num_dropped}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": told}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. A link, a device or a pipe stays what it is, and is written to.

        Raises:
            TraceError: it cannot be written.
        """
        text = json.dumps(self.to_json(), separators=(",", ":"))
        try:
            if _is_replaceable(path):
                _replace(path, text)
            else:
                path.write_text(text)
        except OSError as error:
            raise TraceError(f"cannot write the trace to {path}: {error.strerror or error}") from error

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read back what `write` wrote.

        Raises:
            TraceError: there is no such file, or it is no trace of ours.
        """
        try:
            found = json.loads(path.read_bytes())
        except OSError as error:
            raise TraceError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise TraceError(f"{path} is no trace: it is not JSON ({error})") from error
        told: Any = found.get("otherData") if isinstance(found, dict) else None
        version = told.get("tokenweave_trace") if isinstance(told, dict) else None
        if version != VERSION:
            raise TraceError(
                f"{path} is no trace that can be read: expected JSON with otherData.tokenweave_trace = {VERSION}, "
                f"got {version!r}; record one with `interlace generate --trace`"
            )
        try:
            return cls(_recordings(found["traceEvents"]), told["clock"], told["dropped_passes"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TraceError(
                f"{path} is a damaged trace: {type(error).__name__} at {error}; record it again"
            ) from error


def check_writable(path: Path) -> None:
    """Whether a trace could be written to `path`, before a long run is recorded in vain.

    Raises:
        TraceError: it could not.
    """
    if path.is_dir():
        raise TraceError(f"cannot write the trace to {path}: it is a directory; name a file")
    if not path.parent.is_dir() or (_is_replaceable(path) and not os.access(path.parent, os.W_OK)):
        raise TraceError(f"cannot write the trace to {path}: {path.parent} is no directory to write to")


def _is_replaceable(path: Path) -> bool:
    """Whether another file may take its place: root could replace /dev/null and /dev/stdout for all programs."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def clock_id() -> bytes:
    """The same on two ranks if and only if they read one clock: 16 bytes of the boot and the time namespace."""
    clock = Path("/proc/sys/kernel/random/boot_id").read_text()
    with suppress(OSError):  # an old kernel has no such namespaces
        clock += os.readlink("/proc/self/ns/time")
    return hashlib.blake2b(clock.encode(), digest_size=16).digest()


def _read(rank: int, own: Recorder, message: bytes, offset_s: float) -> Recording:
    passes, at = [], _HEAD.size
    for done in own.passes:
        times: array[float] = array("d")
        times.frombytes(message[at : at + 16 * len(done.plan.steps)])
        at += 16 * len(done.plan.steps)
        if offset_s:
            times = array("d", [each + offset_s for each in times])
        passes.append(Pass(done.number, done.plan, times))
    return Recording(rank, tuple(passes))


def _events(recording: Recording, zero_s: float) -> Iterator[dict[str, Any]]:
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


def _recordings(events: list[dict[str, Any]]) -> tuple[Recording, ...]:
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
