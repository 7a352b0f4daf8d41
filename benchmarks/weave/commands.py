"""`make bench weave` and `make bench split`."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.harness.command_line import (
    Device,
    Dtype,
    Json,
    Model,
    Out,
    Quick,
    Rounds,
    checked_device,
    finish,
)
from interlace.cli import console


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommands."""
    app.command()(weave)
    app.command()(split)


def weave(
    model: Annotated[
        str, typer.Option("--model", "-m", help="As ever, or wide: a random one; absent: smollm2 and wide.")
    ] = "",
    tokens: Annotated[str, typer.Option(help="Token counts, with commas; absent: 256 to 8192.")] = "",
    links: Annotated[
        str,
        typer.Option("--link", help="Modelled links, with semicolons; none: memory.", metavar="GB/s,us;..."),
    ] = "",
    dtype: Dtype = "auto",
    rounds: Rounds = 5,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="The engine instead, over a modelled link.")
    ] = False,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="The engine instead, between two network namespaces.")
    ] = False,
    device: Device = "cpu",
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """The time that weaving hides: a rank's compute lane blocked, woven and not, over modelled links."""
    from benchmarks.weave import blocked
    from benchmarks.weave.end_to_end import EndToEndOptions, measure, report

    if end_to_end or hosts or checked_device(device) != "cpu":
        link = links or "0.25GB/s,5us"
        whole = EndToEndOptions(model or "smollm2", dtype, link, hosts, checked_device(device), rounds, quick)
        with console.progress("measuring") as progress:
            reports = [report(whole, *measure(whole, progress))]
    else:
        reports = []
        for name in (model,) if model else blocked.MODELS:
            options = blocked.WeaveOptions.read(name, dtype, tokens, links, rounds, quick)
            with console.progress(f"measuring {name}") as progress:
                reports.append(blocked.report(options, blocked.measure(options, progress)))
    finish(reports, quick, out, as_json)


def split(
    model: Model = "smollm2",
    tp: Annotated[int, typer.Option(help="Ranks.")] = 2,
    link: Annotated[
        str | None, typer.Option(help="A link to model between them; none: memory.", metavar="GB/s,us|none")
    ] = "0.25GB/s,5us",
    tokens: Annotated[str, typer.Option(help="Token counts, with commas; absent: five.")] = "",
    dtype: Dtype = "auto",
    rounds: Rounds = 3,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The split that the engine chooses beside a sweep over all others, and the simulator beside the clock."""
    from benchmarks.weave.split import TOKENS, measure, report
    from interlace.engine.config import EngineConfig

    counts = tuple(int(count) for count in tokens.split(",")) if tokens else TOKENS
    config = EngineConfig(model, tp=tp, dtype=dtype, link=None if link in (None, "none") else link)
    with console.progress("measuring") as progress:
        found, is_table_measured = measure(config, counts, rounds, progress)
    finish([report(config, found, is_table_measured)], False, out, as_json)
