"""Following: the loop of every rank but rank 0. It waits for a command, carries it out with the others, waits again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from interlace.engine.ranks.runner import Runner, roll_call
from interlace.engine.ranks.tracing import collect_recordings, start_recording
from interlace.errors import EngineError
from interlace.models.batch import ForwardBatch
from interlace.models.sources import load_model

if TYPE_CHECKING:
    from interlace.engine.config import EngineConfig
    from tokenweave.communicators import Communicator

# The first byte of a command from rank 0; the rest is its argument.
BATCH, REPORT, START_TRACE, END_TRACE, QUIT = b"B", b"R", b"T", b"E", b"Q"


def follow(config: EngineConfig, communicator: Communicator, ranks_on_host: int) -> None:
    """Load this rank's shard and carry out rank 0's commands until it says to quit."""
    try:
        runner = Runner(config, load_model(config.model), communicator, ranks_on_host)
        try:
            serve(runner)
        finally:
            runner.close()
    finally:
        communicator.close()


def serve(runner: Runner) -> None:
    """Carry out rank 0's commands until it says to quit.

    Raises:
        RankError: another rank died.
    """
    commands: dict[bytes, Callable[[bytes], object]] = {
        BATCH: lambda data: runner.execute(ForwardBatch.from_bytes(data)),
        REPORT: lambda _: roll_call(runner.communicator, runner.describe()),
        START_TRACE: lambda _: start_recording(runner),
        END_TRACE: lambda _: collect_recordings(runner),
    }
    while True:
        message = runner.communicator.broadcast_bytes(None, idle=True)
        kind, data = message[:1], message[1:]
        if kind == QUIT:
            return
        if kind not in commands:
            raise EngineError(
                f"got command {kind!r} from rank 0; expected one of {sorted(commands)} or {QUIT!r}"
            )
        commands[kind](data)
