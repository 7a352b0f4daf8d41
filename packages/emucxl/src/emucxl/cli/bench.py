"""`emucxl bench`: measures the library, one benchmark per name."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from emucxl.cli import console


def bench(
    name: Annotated[str | None, typer.Argument(help="The benchmark; `--list` names them.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and smaller, to see that it works; its times mean nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Also write the results: a .json file, or a directory, for DIR/<machine>/memory/NAME.json.",
            metavar="FILE|DIR",
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the benchmarks.")] = False,
) -> None:
    """Measure emucxl. Correctness is checked before anything is timed."""
    found = benchmarks()
    if show_list:
        _list(found, as_json)
        return
    if name is None:
        raise typer.BadParameter(f"name one of {', '.join(found)}", param_hint="NAME")
    if name not in found:
        raise typer.BadParameter(f"got the benchmark {name!r}; expected one of {', '.join(found)}")
    from emucxl.bench import harness

    with console.progress(name) as progress:
        report = found[name].run(quick=quick, progress=progress)
    if output is not None:
        typer.echo(f"written: {harness.write_report(report, quick, output)}", err=True)
    if as_json:
        console.show_json(harness.record(report, quick))
    else:
        console.show(harness.table(report))


def benchmarks() -> dict[str, ModuleType]:
    """The modules of emucxl.bench that are benchmarks, by name."""
    import pkgutil
    from importlib import import_module

    from emucxl import bench as package

    modules = (
        import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    )
    return {module.NAME: module for module in modules if hasattr(module, "NAME")}


def _list(found: dict[str, ModuleType], as_json: bool) -> None:
    if as_json:
        console.show_json({"benchmarks": {name: module.SUMMARY for name, module in found.items()}})
        return
    for name, module in found.items():
        print(f"{name:<12} {module.SUMMARY}")
