"""`emucxl top`: what emucxl does on this machine now, sample after sample."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emucxl.cli import console

if TYPE_CHECKING:
    from emucxl.monitor import Sample


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one view and end, as it does without a terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one view as a JSON object and end.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", help="Seconds between samples.", min=0.05, max=3600)
    ] = 1.0,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            help="Also show this pool, beside those in /dev/shm; may be repeated.", metavar="NAME|PATH"
        ),
    ] = None,
) -> None:
    """Show the contexts, links and pools of this user's processes, refreshed every second. Ctrl-C ends."""
    from emucxl import monitor

    named = pool or []
    before = monitor.sample()
    if not (once or as_json) and sys.stdout.isatty():
        _live(before, interval_s, named)
        return
    time.sleep(interval_s)
    view = observe(before, monitor.sample(), named)
    if as_json:
        console.show_json(view)
        return
    from emucxl.cli.top_tables import tables

    console.show(*tables(view), width=160)  # names of 31 letters fit


def observe(before: Sample, now: Sample, named_pools: list[str]) -> dict[str, Any]:
    """Returns the second of two samples with the rates between them. Those of a newcomer are not known yet."""
    from emucxl.cli.top_pools import pools

    elapsed_ns = max(1, now.time_ns - before.time_ns)
    return {
        "interval_s": elapsed_ns / 1e9,
        "contexts": _contexts(before, now, elapsed_ns),
        "links": _links(before, now, elapsed_ns),
        "pools": pools(named_pools),
    }


def _contexts(before: Sample, now: Sample, elapsed_ns: int) -> list[dict[str, Any]]:
    known = {(context.id, tier.name): tier for context in before.contexts for tier in context.tiers}
    found = []
    for context in now.contexts:
        tiers = []
        for tier in context.tiers:
            old = known.get((context.id, tier.name))
            rates = {f"{way}_gbps": _rate(old, tier, f"{way}_bytes", elapsed_ns) for way in ("read", "write")}
            tiers.append(asdict(tier) | rates)
        found.append(asdict(context) | {"tiers": tiers})
    return found


def _links(before: Sample, now: Sample, elapsed_ns: int) -> list[dict[str, Any]]:
    known = {link.id: link for link in before.links}
    found = []
    for link in now.links:
        old = known.get(link.id)
        rates: dict[str, float | None] = {}
        for way in ("read", "write"):
            rates[f"{way}_gbps"] = _rate(old, link, f"{way}_bytes", elapsed_ns)
            # A virtual clock has its own pace: its busy time says nothing about this machine's seconds.
            busy = _rate(old, link, f"{way}_busy_ns", elapsed_ns) if link.clock == "real" else None
            rates[f"{way}_utilisation"] = None if busy is None else min(1.0, busy)
        found.append(asdict(link) | rates | {"kind": "modelled"})
    return found


def _rate(old: object | None, new: object, name: str, elapsed_ns: int) -> float | None:
    """How fast a figure grew, per nanosecond; None for what was not there before."""
    return None if old is None else (getattr(new, name) - getattr(old, name)) / elapsed_ns


def _live(before: Sample, interval_s: float, named: list[str]) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    from emucxl import monitor
    from emucxl.cli.top_tables import tables

    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as display:
        view = observe(before, before, named)
        while True:
            display.update(Group(*tables(view)), refresh=True)
            time.sleep(interval_s)
            now = monitor.sample()
            view = observe(before, now, named)
            before = now
