"""`make bench kernels`, `sampling`, `collectives`, `fused` and `fused-cuda`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.command_line import (
    Device,
    Json,
    Out,
    PeerPython,
    Quick,
    Rounds,
    Threads,
    checked_device,
    finish,
    measure,
)
from emucxl import resources
from emucxl.bench.harness import Progress, Report


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommands."""
    app.command()(kernels)
    app.command()(sampling)
    app.command()(collectives)
    app.command()(fused)
    app.command("fused-cuda")(fused_cuda)


def kernels(
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="For each case.")] = 0.5,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Matrix products and attention on the CPU, beside torch's and the limits of the machine."""
    from benchmarks.kernels.products import run

    _measure(run, threads, seconds, out, quick, as_json)


def sampling(
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="For each case.")] = 0.5,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """One token for each row of logits: greedy, top-k, top-p, penalties, logprobs, beside torch's operations."""
    from benchmarks.kernels.sampling import run

    _measure(run, threads, seconds, out, quick, as_json)


def _measure(
    run: Callable[[int, float, bool, Progress], Report],
    threads: int | None,
    seconds: float,
    out: Path | None,
    quick: bool,
    as_json: bool,
) -> None:
    count = threads or resources.num_threads()
    measure(lambda progress: run(count, seconds, quick, progress), quick, out, as_json)


def collectives(
    ranks: Annotated[int, typer.Option(help="Processes, or threads, that take part.")] = 2,
    rounds: Rounds = 3,
    repeats: Annotated[int, typer.Option(help="Timings per turn.")] = 3,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Latency and bandwidth of the collectives: shared memory, threads and gloo."""
    from benchmarks.kernels.collectives import CollectiveOptions, run

    finish([run(CollectiveOptions(ranks, rounds, repeats, quick))], quick, out, as_json)


def fused(
    peer_python: PeerPython = None,
    rounds: Rounds = 15,
    device: Device = "cpu",
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Sum over two ranks, residual add and RMSNorm in one, beside our own in two, vLLM's and gloo's."""
    if checked_device(device) != "cpu":  # of four ranks on one: see `fused-cuda`
        fused_cuda(rounds=rounds, out=out, quick=quick, as_json=as_json)
        return
    from benchmarks.kernels import fused as module

    tokens = module.QUICK_TOKENS if quick else module.TOKENS
    options = module.FusedOptions(peer_python, tokens, min(rounds, 3) if quick else rounds)
    measure(lambda progress: module.report(options, *module.measure(options, progress)), quick, out, as_json)


def fused_cuda(
    ranks: Annotated[int, typer.Option(help="Streams of this process, as ranks.")] = 4,
    hidden_size: Annotated[int, typer.Option(help="Columns of a row.")] = 4096,
    num_ctas: Annotated[int, typer.Option(help="Of each rank; all ranks' must fit at once.")] = 16,
    rounds: Rounds = 15,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """The fused kernels on one GPU, beside separate kernels and a copy of as many bytes."""
    from interlace.errors import BenchError
    from tokenweave.communicators import availability

    if reason := availability()["symm_mem"]:
        raise BenchError(f"nothing to measure: {reason}")
    from benchmarks.kernels.fused_cuda import run

    report = run(ranks, hidden_size, num_ctas, 3 if quick else rounds, quick)
    finish([report], quick, out, as_json)
