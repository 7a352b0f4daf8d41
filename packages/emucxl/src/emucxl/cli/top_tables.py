"""The view of `emucxl top` as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from emucxl.cli.text import cell, printable

if TYPE_CHECKING:
    from rich.console import RenderableType


def tables(view: dict[str, Any]) -> Iterator[RenderableType]:
    """Contexts with their tiers, links, pools with their hosts; a line where there is none."""
    yield _contexts(view["contexts"]) if view["contexts"] else Text("no contexts")
    yield _links(view["links"]) if view["links"] else Text("no links")
    if not view["pools"]:
        yield Text("no pools")
    for pool in view["pools"]:
        yield cell(f"pool {pool['path']}: {pool['error']}") if "error" in pool else _pool(pool)


def _contexts(contexts: list[dict[str, Any]]) -> Table:
    table = _table(
        "Contexts",
        ("process", "clock", "tier", "provider", "timing"),
        ("objects", "allocated", "reserved", "capacity", "read", "GB/s", "written", "GB/s"),
    )
    for context in contexts:
        shown = f"{context['pid']} {context['name'] or context['command']}"
        owner: tuple[str | Text, ...] = (cell(shown), context["clock"])
        for tier in context["tiers"]:
            table.add_row(
                *owner,
                cell(tier["name"]),
                tier["provider"],
                "modelled" if tier["modelled"] else "unmodelled",
                f"{tier['num_allocations']:,}",
                *(_size(tier[name]) for name in ("allocated_bytes", "reserved_bytes", "capacity_bytes")),
                _size(tier["read_bytes"]),
                _rate(tier["read_gbps"]),
                _size(tier["write_bytes"]),
                _rate(tier["write_gbps"]),
            )
            owner = ("", "")
        if not context["tiers"]:
            table.add_row(*owner, "none yet")
    return table


def _links(links: list[dict[str, Any]]) -> Table:
    table = _table(
        "Links (modelled)",
        ("processes", "clock", "duplex"),
        ("limit GB/s", "latency ns", "read GB/s", "busy", "write GB/s", "busy", "waited s"),
    )
    for link in links:
        table.add_row(
            " ".join(map(str, link["pids"])),
            link["clock"],
            "full" if link["full_duplex"] else "half",
            f"{link['read_bandwidth_gbps']:g} / {link['write_bandwidth_gbps']:g}",
            f"{link['latency_ns']:g}",
            _rate(link["read_gbps"]),
            _share(link["read_utilisation"]),
            _rate(link["write_gbps"]),
            _share(link["write_utilisation"]),
            f"{link['queued_ns'] / 1e9:.3f}",
        )
    return table


def _pool(pool: dict[str, Any]) -> Table:
    held = f"{_size(pool['held_bytes'])} of {_size(pool['size_bytes'])} held"
    retired = f", {_size(pool['retired_bytes'])} retired" if pool["retired_bytes"] else ""
    table = _table(
        f"Pool {printable(pool['path'])}: {held}{retired}",
        ("host", "process", "state"),
        ("owned", "quota", "lease", "silent for"),
    )
    for host in pool["hosts"]:
        silence_s = host["silence_s"]
        table.add_row(
            cell(host["name"]),
            str(host["pid"]),
            host["state"],
            _size(host["owned_bytes"]),
            _size(host["quota_bytes"]) if host["quota_bytes"] else "none",
            f"{host['lease_s']:.1f} s",
            "unknown" if silence_s is None else f"{silence_s:.1f} s",
        )
    return table


def _table(title: str, texts: tuple[str, ...], figures: tuple[str, ...]) -> Table:
    table = Table(
        title=Text(title, style="bold"), box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left"
    )
    for column in texts:
        table.add_column(column, no_wrap=True)
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _size(size_bytes: int) -> str:
    """In the largest unit of which it has one or more."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes} B"


def _rate(gbps: float | None) -> str:
    return "-" if gbps is None else f"{gbps:.3f}"


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.0%}"
