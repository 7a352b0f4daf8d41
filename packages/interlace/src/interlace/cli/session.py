"""A session with a model: opening it as early as possible, and collecting one streamed reply."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from interlace.cli import console
from interlace.cli.clock import since_command_s
from interlace.engine.config import EngineConfig

if TYPE_CHECKING:
    from interlace.engine.chunk import StreamChunk
    from interlace.engine.llm import LLM
    from interlace.engine.output import RequestOutput


def open_llm(config: EngineConfig) -> LLM:
    """Returns the model of `config`, fetched if need be and loaded on all its ranks.

    Under torchrun only rank 0 gets one; the other ranks serve it and end inside this call.

    Raises:
        ModelError, EngineError: it cannot be found, read or run.
    """
    from interlace.engine.ranks.launch import start
    from interlace.models.sources import resolve

    shown = console.is_progress_shown() and not is_follower(config)
    path = resolve(config.model, quiet=not shown)
    with console.working(f"loading {config.model}", shown):
        ranks = start(
            replace(config, model=str(path))
        )  # before torch is imported here: all ranks load at once
        try:
            from interlace.engine.llm import LLM

            options = asdict(config)
            return LLM(options.pop("model"), ranks=ranks, **options)
        except BaseException:
            ranks.close()
            raise


def is_follower(config: EngineConfig) -> bool:
    """Returns True in a rank other than 0 that torchrun started: it serves rank 0 and prints nothing."""
    from interlace.engine.ranks.launch import resolve_communicator
    from tokenweave.environment import torchrun_environment

    return resolve_communicator(config) == "torchrun" and torchrun_environment().rank != 0


@dataclass(frozen=True)
class Reply:
    """A finished reply, and the time from the typed command to its first token."""

    output: RequestOutput
    command_to_first_token_s: float | None  # None where the system does not tell when the command was typed


def collect(chunks: Iterator[StreamChunk], echo: bool) -> Reply:
    """Runs a request to its end; with `echo`, prints its text as it comes."""
    first_token_s: float | None = None
    text, is_first = "", True
    for chunk in chunks:
        if is_first:
            first_token_s, is_first = since_command_s(), False
        if echo:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
            text = chunk.text or text
        if chunk.output is not None:
            if echo and not text.endswith("\n"):
                sys.stdout.write("\n")
            return Reply(chunk.output, first_token_s)
    raise RuntimeError("the stream of a request ended without its output")
