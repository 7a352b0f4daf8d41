"""Traces: the recordings of all ranks on one clock, written for Perfetto and read back.

Nothing is attached, and nothing costs anything, until a recorder is. A `Recorder` then keeps two numbers for each step.
The ranks' recordings, joined on one clock, make a `Trace`: a JSON file that ui.perfetto.dev and chrome://tracing open,
with a process for each rank and a thread for each lane.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from tokenweave.errors import TraceError
from tokenweave.trace.chrome import events_of, recordings_of
from tokenweave.trace.file import write_whole
from tokenweave.trace.recorder import Recorder, join_messages, widest
from tokenweave.trace.recording import Recording

VERSION = 1


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
        recordings, is_one_clock = join_messages(own, messages)
        clock = cls.clock if is_one_clock else "several hosts: aligned at a barrier when recording began"
        if device := widest(messages):
            ppm = f"{1e6 * device.drift:+.0f} ppm" if device.drift else "none seen"
            clock += f"; devices' events placed on it within {ceil(1e6 * device.within_s)} us, drift: {ppm}"
        return cls(recordings, clock, own.num_dropped)

    def to_json(self) -> dict[str, Any]:
        """The trace in the Trace Event Format, times in microseconds from the first step's start."""
        spans = (span for each in self.recordings for done in each.passes for span in done.spans())
        zero_s = min((span.start_s for span in spans), default=0.0)
        events = [event for recording in self.recordings for event in events_of(recording, zero_s)]
        told = {"tokenweave_trace": VERSION, "clock": self.clock, "dropped_passes": self.num_dropped}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": told}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. A link, a device or a pipe stays what it is, and is written to.

        Raises:
            TraceError: it cannot be written.
        """
        write_whole(path, json.dumps(self.to_json(), separators=(",", ":")))

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
            return cls(recordings_of(found["traceEvents"]), told["clock"], told["dropped_passes"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TraceError(
                f"{path} is a damaged trace: {type(error).__name__} at {error}; record it again"
            ) from error
