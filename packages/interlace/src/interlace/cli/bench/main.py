"""`interlace bench`: what it is told on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emucxl import resources
from interlace.cli import console

if TYPE_CHECKING:
    from emucxl.bench.harness import Report
    from interlace.cli.bench.drive import ServeRun

GEMM_TOKENS = (512, 2048)
Model = Annotated[str, typer.Option("--model", "-m", help="An alias, a directory or a .gguf file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Measure Interlace, with peers interleaved in the same run; correctness before speed."""


@app.command()
def serve(
    model: Model = "smollm2",
    systems: Annotated[str, typer.Option(help="Names, with commas; absent: all that can run.")] = "",
    peer_python: Annotated[
        str | None, typer.Option(help="Python of an environment with transformers, vllm, llama-cpp-python.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; a warm-up round comes before them.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Of each system; absent: the cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write DIR/<machine>/serve.json.", metavar="DIR")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes: that it works, not how fast.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prefill, decode, a job of many prompts, cold start; limits of the machine; where the time goes."""
    from interlace.cli.bench import record, report
    from interlace.cli.bench.drive import ServeOptions
    from interlace.cli.bench.drive import serve as run_serve

    options = ServeOptions(
        model=model,
        systems=tuple(name.strip() for name in systems.split(",") if name.strip()),
        peer_python=peer_python,
        rounds=rounds,
        threads=threads or resources.num_threads(),
        is_quick=quick,
    )
    run: ServeRun = run_serve(options, lambda text: typer.echo(text, err=True))
    result = record.to_json(run)
    if out is not None:
        typer.echo(f"written: {record.write(result, out)}", err=True)
    if as_json:
        console.show_json(result)
    else:
        console.show(*report.tables(run))


@app.command()
def limits(
    model: Model = "smollm2",
    rounds: Annotated[int, typer.Option(help="Samples of each limit.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Absent: the cores.")] = None,
    as_json: Json = False,
) -> None:
    """What the machine would allow: GEMM alone at the model's shapes, and bytes from memory."""
    from emucxl.bench import machine
    from interlace.cli.bench import report
    from interlace.cli.bench.limits import measure_limits
    from interlace.models.sources import load_model

    config = load_model(model).config
    found = measure_limits(config, threads or resources.num_threads(), rounds, GEMM_TOKENS)
    if as_json:
        console.show_json({"machine": machine.describe(), **found.to_json()})
    else:
        console.show(report.gemm(found), report.memory(found))


@app.command()
def split(
    model: Model = "smollm2",
    tp: Annotated[int, typer.Option(help="Ranks.")] = 2,
    link: Annotated[
        str | None, typer.Option(help="A link to model between them; none: memory.", metavar="GB/s,us|none")
    ] = "0.25GB/s,5us",
    tokens: Annotated[str, typer.Option(help="Token counts, with commas; absent: five.")] = "",
    dtype: Annotated[str, typer.Option(metavar="auto|float32|bfloat16")] = "auto",
    rounds: Annotated[int, typer.Option(help="Timed rounds of every split.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Write DIR/<machine>/split.json.", metavar="DIR")] = None,
    as_json: Json = False,
) -> None:
    """The split that the engine chooses against a sweep over all others, and the simulator against the clock."""
    from emucxl.bench import harness, machine
    from interlace.cli.bench import split as bench
    from interlace.engine.config import EngineConfig

    counts = tuple(int(count) for count in tokens.split(",")) if tokens else bench.TOKENS
    config = EngineConfig(model, tp=tp, dtype=dtype, link=None if link in (None, "none") else link)
    with console.progress("measuring") as progress:
        found, is_table_measured = bench.measure(config, counts, rounds, progress)
    report = bench.report(config, found, is_table_measured)
    if out is not None:
        path = harness.write_report(report, False, out / machine.slug() / "split.json")
        typer.echo(f"written: {path}", err=True)
    if as_json:
        console.show_json(harness.record(report, quick=False))
    else:
        console.show(harness.table(report))


@app.command()
def weave(
    model: Annotated[
        str, typer.Option("--model", "-m", help="As ever, or wide: a random one; absent: smollm2 and wide.")
    ] = "",
    tokens: Annotated[str, typer.Option(help="Token counts, with commas; absent: 256 to 8192.")] = "",
    links: Annotated[
        str,
        typer.Option("--link", help="Modelled links, with semicolons; none: memory.", metavar="GB/s,us;..."),
    ] = "",
    dtype: Annotated[str, typer.Option(metavar="auto|float32|bfloat16")] = "auto",
    rounds: Annotated[int, typer.Option(help="Timed rounds; a warm-up round comes before them.")] = 5,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="The engine instead, over a modelled link.")
    ] = False,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="The engine instead, between two network namespaces.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write DIR/<machine>/weave.json.", metavar="DIR")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes: that it works, not how fast.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What weaving hides: the time that a rank's compute lane is blocked, woven and not, over modelled links."""
    from interlace.cli.bench import weave as bench
    from interlace.cli.bench import weave_end_to_end

    if end_to_end or hosts:
        whole = weave_end_to_end.Options(
            model or "smollm2", dtype, links or "0.25GB/s,5us", hosts, rounds, quick
        )
        with console.progress("measuring") as progress:
            reports = [weave_end_to_end.report(whole, *weave_end_to_end.measure(whole, progress))]
    else:
        reports = []
        for name in (model,) if model else bench.MODELS:
            options = bench.Options.read(name, dtype, tokens, links, rounds, quick)
            with console.progress(f"measuring {name}") as progress:
                reports.append(bench.report(options, bench.measure(options, progress)))
    _finish(reports, quick, out, as_json)


@app.command()
def fused(
    peer_python: Annotated[
        str | None, typer.Option(help="Python of an environment with vllm's CPU build; absent: without.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds, interleaved.")] = 15,
    out: Annotated[Path | None, typer.Option(help="Write DIR/<machine>/fused.json.", metavar="DIR")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two small shapes: that it works, not how fast.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Sum over two ranks, residual add and RMSNorm: in one, against our own in two, vLLM's and gloo's."""
    from interlace.cli.bench import fused as bench

    tokens = bench.QUICK_TOKENS if quick else bench.TOKENS
    options = bench.Options(peer_python, tokens, min(rounds, 3) if quick else rounds)
    with console.progress("measuring") as progress:
        report = bench.report(options, *bench.measure(options, progress))
    _finish([report], quick, out, as_json)


def _finish(reports: list[Report], quick: bool, out: Path | None, as_json: bool) -> None:
    """Print the reports, and write them to one file, named after the first, if it was asked for."""
    from emucxl.bench import harness, machine

    records = [harness.record(report, quick) for report in reports]
    result = records[0] if len(records) == 1 else {"benchmark": reports[0].name, "runs": records}
    if out is not None:
        path = out / machine.slug() / f"{reports[0].name}{'-quick' if quick else ''}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        typer.echo(f"written: {path}", err=True)
    if as_json:
        console.show_json(result)
    else:
        console.show(*map(harness.table, reports))
