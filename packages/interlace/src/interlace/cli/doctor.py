"""`interlace doctor`: tells what this machine offers Interlace, what is missing, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from interlace.cli import console
from interlace.cli.cuda_examination import device_text


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
            for label, text in _lines(name, value):
                print(f"  {label:<16} {text}")
    print()
    for problem in report["problems"]:
        print(f"problem: {problem}")
    print("Interlace cannot run here." if report["problems"] else "Interlace can run here.")


def _lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A fact's lines: one, or one for each device."""
    if name == "devices" and isinstance(value, list):
        yield from ((f"device {device['index']}", device_text(device)) for device in value)
    elif isinstance(value, list):
        yield name, ", ".join(value) if value else "none"
    else:
        yield name, console.short_path(value) if value.startswith(os.sep) else str(value)
