"""`interlace doctor`: tells what this machine offers Interlace, what is missing, and why."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from interlace.cli import console


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Also measure the speed of cores and memory; takes a second."),
    ] = False,
) -> None:
    """Say what this machine offers, and what is missing. Works offline. Status 1 when Interlace cannot run."""
    from interlace.cli.examination import examine

    report = examine(measure)
    if as_json:
        console.show_json(report)
    else:
        _print_report(report)
    if report["problems"]:
        raise typer.Exit(1)


def _print_report(report: dict[str, Any]) -> None:
    for section, facts in report.items():
        if section == "problems":
            continue
        print(section)
        for name, value in facts.items():
            print(f"  {name:<16} {_text(value)}")
    print()
    for problem in report["problems"]:
        print(f"problem: {problem}")
    print("Interlace cannot run here." if report["problems"] else "Interlace can run here.")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) if value else "none"
    return console.short_path(value) if value.startswith(os.sep) else str(value)
