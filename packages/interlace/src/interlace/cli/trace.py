"""`interlace trace`: look at what a run recorded with `--trace`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emucxl.cli.command import Group
from interlace.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from tokenweave.trace import Figures, Kind, Summary

app = typer.Typer(cls=Group, no_args_is_help=True, help="Look at a recorded trace.")
NUM_KINDS = 6  # kinds of passes in the table, those that took longest


@app.callback()
def _group() -> None:
    """Keeps `summary` a subcommand of its own."""


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(help="A file that --trace wrote.", metavar="FILE.json")],
    every_layer: Annotated[
        bool, typer.Option("--all", help="Do not fold layers or kinds of passes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print how long each rank computed, how much communication and moving of blocks was hidden, and what the simulator
    says."""
    from tokenweave.trace import Trace, summarise

    found = summarise(Trace.read(file))
    if as_json:
        console.show_json(_json_object(found))
        return
    dropped = f", {found.num_dropped} earlier ones dropped" if found.num_dropped else ""
    print(f"{len(found.ranks)} ranks, {found.num_passes} passes{dropped}; {found.clock}")
    print(
        "milliseconds, measured; * is modelled: the simulator on the measured steps, and undisturbed on their medians"
    )
    tables = [_rank_table(found), _kind_table(found, every_layer), _layer_table(found, every_layer)]
    if found.moves:
        tables.append(_memory_table(found))
    console.show(*(each for table in tables for each in ("", table)))


def _rank_table(found: Summary) -> Table:
    table = _table("rank", *MEASURED, *MODELLED)
    for rank, figures in found.ranks.items():
        table.add_row(str(rank), *_cells(figures))
    if len(found.ranks) > 1:
        table.add_row("mean", *_cells(found.total))
    return table


def _kind_table(found: Summary, every_kind: bool) -> Table:
    """Passes alike: as many tokens, split at the same place."""
    table = _table("passes", "tokens", "split", *MEASURED, *MODELLED)
    kinds = list(found.kinds.items())
    shown = kinds if every_kind or len(kinds) <= NUM_KINDS else kinds[: NUM_KINDS - 1]
    for kind, (count, figures) in shown:
        table.add_row(str(count), f"{kind.num_tokens:,}", _split(kind), *_cells(figures))
    if len(shown) < len(kinds):
        from tokenweave.trace import Figures

        others = Figures()
        for _, (_, figures) in kinds[len(shown) :]:
            others.add(figures)
        count = sum(count for _, (count, _) in kinds[len(shown) :])
        table.add_row(str(count), "others", "", *_cells(others))
    return table


def _layer_table(found: Summary, every_layer: bool) -> Table:
    """All passes together, the mean over the ranks."""
    table = _table("layer", "compute", "communication", "hidden", "exposed", "hidden share")
    for name, figures in _folded(found.layers, every_layer):
        table.add_row(name, *_layer_cells(figures))
    table.add_row("all", *_layer_cells(found.total))
    return table


def _memory_table(found: Summary) -> Table:
    """The memory lane of each rank, and each of its operations: of these the mean over the ranks."""
    table = _table("memory lane", "busy", "hidden", "exposed", "hidden share", "blocked by it")
    for rank, figures in found.ranks.items():
        table.add_row(f"rank {rank}", *_memory_cells(figures), _ms(figures.memory_blocked_s))
    if len(found.ranks) > 1:
        table.add_row("mean", *_memory_cells(found.total), _ms(found.total.memory_blocked_s))
    for name, figures in found.moves.items():
        table.add_row(name, *_memory_cells(figures))
    return table


def _memory_cells(figures: Figures) -> list[str]:
    seconds = (figures.memory_s, figures.memory_hidden_s, figures.memory_exposed_s)
    return [*map(_ms, seconds), f"{figures.memory_hidden_fraction:.0%}"]


def _folded(layers: dict[str, Figures], every_layer: bool) -> Iterator[tuple[str, Figures]]:
    """The first and the last layer, and those between as the mean of them."""
    from tokenweave.trace import mean

    numbers = [name for name in layers if name.isdigit()]
    inner = [] if every_layer or len(numbers) <= 3 else numbers[1:-1]
    for name, figures in layers.items():
        if name not in inner:
            yield f"layer {name}" if name.isdigit() else name, figures
        elif name == inner[0]:
            yield f"each of {inner[0]}-{inner[-1]}", mean(layers[each] for each in inner)


MEASURED = ("total", "compute", "comm.", "hidden", "exposed", "blocked")
MODELLED = ("total*", "differs", "blocked*", "undisturbed*")


def _cells(figures: Figures) -> list[str]:
    measured = (
        figures.total_s,
        figures.compute_s,
        figures.communication_s,
        figures.hidden_s,
        figures.exposed_s,
    )
    return [
        *map(_ms, measured),
        _ms(figures.blocked_s),
        _ms(figures.modelled_total_s),
        _difference(figures.modelled_total_s, figures.total_s),
        _ms(figures.modelled_blocked_s),
        _ms(figures.undisturbed_total_s),
    ]


def _layer_cells(figures: Figures) -> list[str]:
    seconds = (figures.compute_s, figures.communication_s, figures.hidden_s, figures.exposed_s)
    return [*map(_ms, seconds), f"{figures.hidden_fraction:.0%}"]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"


def _difference(modelled: float, measured: float) -> str:
    return f"{modelled / measured - 1:+.1%}" if measured > 0 else "-"


def _split(kind: Kind) -> str:
    return "-" if kind.split is None else str(kind.split)


def _table(*headings: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _json_object(found: Summary) -> dict[str, Any]:
    return {
        "num_passes": found.num_passes,
        "num_dropped": found.num_dropped,
        "clock": found.clock,
        "ranks": [{"rank": rank, **_figures(each)} for rank, each in found.ranks.items()],
        "kinds": [
            {"num_passes": count, "num_tokens": kind.num_tokens, "split": kind.split, **_figures(each)}
            for kind, (count, each) in found.kinds.items()
        ],
        "layers": [{"layer": name, **_times(each)} for name, each in found.layers.items()],
        "moves": [{"operation": name, **_memory_times(each)} for name, each in found.moves.items()],
        "mean": _figures(found.total),
    }


def _times(figures: Figures) -> dict[str, float]:
    return {
        "compute_s": figures.compute_s,
        "communication_s": figures.communication_s,
        "hidden_s": figures.hidden_s,
        "exposed_s": figures.exposed_s,
        "hidden_fraction": figures.hidden_fraction,
        **_memory_times(figures),
    }


def _memory_times(figures: Figures) -> dict[str, float]:
    return {
        "memory_s": figures.memory_s,
        "memory_hidden_s": figures.memory_hidden_s,
        "memory_exposed_s": figures.memory_exposed_s,
        "memory_hidden_fraction": figures.memory_hidden_fraction,
    }


def _figures(figures: Figures) -> dict[str, float]:
    return {
        "total_s": figures.total_s,
        **_times(figures),
        "blocked_s": figures.blocked_s,
        "memory_blocked_s": figures.memory_blocked_s,
        "modelled_total_s": figures.modelled_total_s,
        "modelled_blocked_s": figures.modelled_blocked_s,
        "undisturbed_total_s": figures.undisturbed_total_s,
    }
