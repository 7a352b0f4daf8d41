"""`interlace generate`: one prompt in, one answer out."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from emucxl.cli import streams
from interlace.cli import console
from interlace.cli.given import GivenSampling
from interlace.cli.options import with_options
from interlace.engine.config import EngineConfig
from interlace.engine.prompts import ChatOptions


@with_options
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; absent or -: read from standard input.")
    ] = None,
    *,
    system: Annotated[
        str | None, typer.Option(help="Instructions for the model, as its system message.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the chat template out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Record when each step runs on each rank, for Perfetto.", metavar="FILE.json"),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Print speeds and memory after the answer.")] = False,
    sampling: GivenSampling,
    template: ChatOptions,
    engine: EngineConfig,
) -> None:
    """Answer one prompt; the answer streams to standard output."""
    if raw:
        _refuse_chat_options(system, template)
    if trace is not None:
        _check_writable(trace)  # before a model is loaded in vain
    told = None if system is None else streams.argument_text(system)
    request = _request(_read_prompt(prompt, engine), told, raw)

    from interlace.cli.report import json_object, table_of
    from interlace.cli.session import collect, open_llm

    with open_llm(engine) as llm:
        with llm.trace(trace) if trace is not None else nullcontext():
            params = sampling.over(llm.sampling_defaults)
            reply = collect(llm.stream(request, params, **template), echo=not as_json)
        ranks = llm.describe() if as_json or table else {}
    if as_json:
        console.show_json(json_object(reply, engine, params, ranks))
    elif table:
        print(f"\n{table_of(reply, engine, ranks)}")


def _check_writable(trace: Path) -> None:
    from tokenweave.trace import check_writable

    check_writable(trace)


def _refuse_chat_options(system: str | None, template: ChatOptions) -> None:
    """Raises a usage error for options that only the chat template uses."""
    if system is not None:
        raise typer.BadParameter("--system needs the chat template: leave out --raw, or --system")
    if template:
        raise typer.BadParameter(
            f"{', '.join(template)} are for the chat template: leave out --raw, or those"
        )


def _request(prompt: str, system: str | None, raw: bool) -> str | list[dict[str, str]]:
    """Returns the prompt as LLM.stream takes it: a text as it is, or a conversation for the chat template."""
    if raw:
        return prompt
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": prompt}]


def _read_prompt(prompt: str | None, engine: EngineConfig) -> str:
    """Returns the prompt that was given or piped in. Raises a usage error when there is none."""
    if prompt is not None and prompt != "-":
        return streams.argument_text(prompt)
    from interlace.cli.session import is_follower

    if is_follower(engine):
        return ""  # rank 0 reads it
    if prompt is None and sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, or pipe one in", param_hint="PROMPT")
    return streams.read_text().removesuffix("\n")
