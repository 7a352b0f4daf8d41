"""Recording a trace on every rank. All ranks make each of these calls, at rank 0's command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlace.engine.ranks.messages import messages_of_all
from tokenweave.errors import TraceError
from tokenweave.trace import Recorder

if TYPE_CHECKING:
    from interlace.engine.ranks.runner import Runner


def start_recording(runner: Runner) -> None:
    """Record every batch from here on. The clocks of several hosts are aligned by the barrier."""
    recorder = Recorder()
    runner.communicator.barrier()
    recorder.mark()
    runner.recorder = recorder


def collect_recordings(runner: Runner) -> tuple[Recorder, list[bytes]]:
    """End the recording: this rank's own, and every rank's in rank order, over the channel of commands.

    A rank on a GPU waits for it first.
    """
    recorder, runner.recorder = runner.recorder, None
    if recorder is None:
        raise TraceError("no trace is being recorded: start one first")
    if runner.streams is not None:
        recorder.alignment = runner.streams.collect()
    return recorder, messages_of_all(runner.communicator, recorder.to_bytes())
