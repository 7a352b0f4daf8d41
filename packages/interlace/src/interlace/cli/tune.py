"""`interlace tune`: measure this machine's wave table for a model, once; the engine finds it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlace.cli import console
from interlace.errors import EngineError

if TYPE_CHECKING:
    import torch

    from interlace.engine.config import EngineConfig
    from interlace.engine.weaving.stage_timing import ThreadedStages
    from interlace.models.config import ModelConfig
    from interlace.models.footprint import Formats
    from interlace.models.weights import WeightSource
    from tokenweave.curves import Curve
    from tokenweave.kernels import Kernels
    from tokenweave.sm_sharing import SmSharing
    from tokenweave.tune import Progress
    from tokenweave.wave_table import LayerKind, MlpShape, WaveTable

DENSE = 48  # tokens up to which the chart shows single waves
GPU_DENSE = 4096  # the same of a GPU, whose tiles are tall and whose waves are wide


def tune(
    model: Annotated[str, typer.Argument(help="An alias, a directory, a .gguf file or a hub id.")],
    tp: Annotated[int, typer.Option(help="Ranks, all on this host.")] = 2,
    device: Annotated[
        str, typer.Option(help="Where ranks compute, as in `generate`.", metavar="auto|cpu|cuda")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Number format, as in `generate`.", metavar="auto|float32|bfloat16|float16")
    ] = "auto",
    quantize: Annotated[
        str, typer.Option(help="Weights, as in `generate`.", metavar="auto|none|stored|int8|int4|fp8")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads of each rank; absent: the cores, shared out.")
    ] = None,
    kernels: Annotated[
        str, typer.Option(help="Arithmetic, as in `generate`.", metavar="auto|native|reference")
    ] = "auto",
    max_tokens: Annotated[int, typer.Option(help="Tokens of the largest forward pass.")] = 4096,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as one JSON object.")] = False,
) -> None:
    """Time a model's layers at many token counts, so that the engine knows where to split a batch.

    Reads the model's configuration and none of its weights. Keeps the table where the engine finds it.
    """
    if tp < 1 or max_tokens < 1 or not 0 < seconds < float("inf"):
        raise EngineError(
            f"got tp={tp}, max_tokens={max_tokens}, seconds={seconds}; expected positive numbers"
        )
    source, directory = _source_of(model), _directory()
    _check_directory(directory)
    start = time.perf_counter()
    with console.progress("measuring") as progress:
        table = _measure(source, tp, device, dtype, quantize, threads, kernels, max_tokens, seconds, progress)
    try:
        path = table.save(directory)
    except OSError:
        if as_json:
            console.show_json({**table.to_json(), "path": None})  # minutes of measuring, which are not lost
        raise
    if as_json:
        console.show_json({**table.to_json(), "path": str(path)})
        return
    print(f"{model} on {tp} rank{'s' if tp > 1 else ''}: {_summary(table)}\n")
    print("\n".join(_charts(table)))
    print(f"\nmeasured in {time.perf_counter() - start:.0f} s; kept in {path}")


def _source_of(model: str) -> WeightSource:
    from interlace.models.sources import load_model

    return load_model(model, quiet=not console.is_progress_shown()).weights


def _directory() -> Path:
    from interlace.engine.weaving.this_machine import table_directory

    return table_directory()


def _check_directory(directory: Path) -> None:
    """Raises: EngineError before anything is measured, where no table could be kept."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise EngineError(
            f"{directory} cannot be written: {error.strerror}; wave tables are kept there. Set INTERLACE_CACHE to a "
            "directory that can be"
        ) from error


def _measure(
    source: WeightSource,
    tp: int,
    device: str,
    dtype: str,
    quantize: str,
    threads: int | None,
    kernels: str,
    max_tokens: int,
    seconds: float,
    progress: Progress | None,
) -> WaveTable:
    import torch

    from interlace.engine.config import EngineConfig
    from interlace.engine.dtypes import choice as dtypes
    from interlace.engine.dtypes.products import Products
    from interlace.engine.ranks.connect import kernels_for
    from interlace.engine.ranks.device import resolve_device
    from interlace.engine.weaving.this_machine import row_tile, table_key
    from interlace.models.footprint import formats_of, resolve_quantize, weights_name
    from interlace.models.shard import Shard
    from tokenweave.tune import measure_table

    config = source.config
    checked = EngineConfig(
        "model", tp=tp, device=device, dtype=dtype, threads=threads, kernels=kernels, quantize=quantize
    )
    checked = replace(checked, device=resolve_device(checked))
    own = kernels_for(checked, tp)
    quantize = resolve_quantize(quantize, dtype, source)
    products = Products.of(config, Shard.of(config, 0, tp), dtypes.blocks_of(quantize, source))
    found = dtypes.resolve(checked.dtype, own, products)
    torch.set_num_threads(own.threads)
    formats = formats_of(source, quantize) if quantize == "stored" else None
    with _stages(checked, config, own, found, max_tokens, quantize, formats) as stages:
        return measure_table(
            stages,
            table_key(config, tp, own, found, weights_name(source, quantize)),
            max_tokens=max_tokens,
            row_tile=row_tile(own),
            budget_s=seconds,
            progress=progress,
        )


def _stages(
    checked: EngineConfig,
    config: ModelConfig,
    own: Kernels,
    dtype: torch.dtype,
    max_tokens: int,
    quantize: str,
    formats: Formats | None,
) -> ThreadedStages:
    """All ranks, on this host's processor or on its GPUs."""
    if checked.device == "cuda":
        from interlace.engine.weaving.gpu_stages import CudaGpus, GpuStages

        return GpuStages(config, CudaGpus(checked.tp, own.name), dtype, max_tokens, quantize, formats)
    from interlace.engine.weaving.stage_timing import HostStages

    return HostStages(config, checked.tp, own.name, own.threads, dtype, max_tokens, quantize, formats)


def _summary(table: WaveTable) -> str:
    key = table.key
    if table.is_of_gpu:
        return (
            f"{key.machine}, {key.kernels} kernels, {key.dtype}, \nthe slowest rank's times while all compute, and "
            f"{1e6 * table.host.issue_s:.0f} µs of the host to issue a step"
        )
    return (
        f"{key.kernels} kernels, {key.dtype}, {key.threads} thread{'s' if key.threads > 1 else ''} a rank, "
        f"\nthe slowest rank's times while all compute"
    )


def _charts(table: WaveTable) -> Iterator[str]:
    """Of each kind of layer; two kinds with the same MLP have one chart of it."""
    charted: set[MlpShape] = set()
    for place, kind in enumerate(table.key.kinds):
        if len(table.kinds) > 1:
            yield f"{_name_of(kind)}\n"
        if kind.mlp not in charted:
            yield from _waves(table, table.kinds[place].mlp, GPU_DENSE if table.is_of_gpu else DENSE)
        charted.add(kind.mlp)
        yield f"{'tokens':>8}{'projections':>13}{'attention':>11}{'MLP':>9}{'reduction':>11}   ms"
        for tokens in (1, 12, 16, 64, 256, 1024, 2048, 4096):
            if tokens <= table.projections.tokens[-1]:
                yield _row(table, place, tokens)
        if place < len(table.kinds) - 1:
            yield ""
    if table.sharing is not None:
        yield ""
        yield from _reductions(table.sharing)


def _reductions(sharing: SmSharing) -> Iterator[str]:
    """A reduction's time by its CTAs, and those that it takes."""
    yield "a reduction, ms, by the CTAs that it takes, and those that were chosen for whole and for woven batches"
    yield (
        f"{'tokens':>8}"
        + "".join(f"{each.num_ctas:>9}" for each in sharing.beside)
        + f"{'whole':>9}{'woven':>9}"
    )
    for tokens in (16, 64, 256, 1024, 2048, 4096):
        if tokens <= sharing.beside[0].reduce.tokens[-1]:
            times = "".join(f"{1e3 * each.reduce(tokens):>9.3f}" for each in sharing.beside)
            whole, woven = (each.num_ctas for each in (sharing.in_whole(tokens), sharing.in_part(tokens)))
            yield f"{tokens:>8,}{times}{whole:>9}{woven:>9}"


def _name_of(kind: LayerKind) -> str:
    """A kind of layer in words."""
    keys = f"with a window of {kind.window:,} keys" if kind.window else "that see all keys"
    columns = f"{max(kind.mlp.columns):,} columns a rank"
    if not kind.mlp.num_experts:
        return f"layers {keys}, with an MLP of {columns}"
    return f"layers {keys}, with {kind.mlp.num_experts} experts of {columns}"


def _waves(table: WaveTable, mlp: Curve, dense_tokens: int) -> Iterator[str]:
    from interlace.cli.chart import chart

    points = list(zip(mlp.tokens, mlp.seconds, strict=True))
    dense = [(float(tokens), 1e6 * seconds) for tokens, seconds in points if tokens <= dense_tokens]
    yield f"MLP of one layer, µs, against tokens up to {dense_tokens:,}: every step up is one more wave"
    yield from chart(dense)
    yield ""
    yield "one layer without its attention, µs per token, against tokens (logarithmic)"
    whole = [
        (float(tokens), 1e6 * (seconds + table.projections(tokens)) / tokens) for tokens, seconds in points
    ]
    yield from chart([point for point in whole if point[0] >= 12], log_x=True)
    yield ""


def _row(table: WaveTable, kind: int, tokens: int) -> str:
    from tokenweave.cost import CostModel
    from tokenweave.geometry import BatchGeometry
    from tokenweave.plan import Op

    costs, load = CostModel(table, layers=(kind,)), BatchGeometry.prefill(tokens)
    projections = table.projections(tokens)
    attention = costs.stage_s(Op.ATTENTION, load, kind) - projections
    cells = (projections, attention, table.kinds[kind].mlp(tokens), table.reduce(tokens))
    return f"{tokens:>8,}" + "".join(
        f"{1e3 * cell:>{width}.3f}" for cell, width in zip(cells, (13, 11, 9, 11), strict=True)
    )
