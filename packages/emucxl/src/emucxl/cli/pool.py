"""`emucxl pool`: make pools, look into them, and put them right."""

from __future__ import annotations

import re
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emucxl.cli import console
from emucxl.cli.command import Group
from emucxl.cli.text import cell, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from emucxl.pool import HostInfo, Pool, RegionInfo

UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}

app = typer.Typer(
    cls=Group,
    name="pool",
    no_args_is_help=True,
    help="Make pools of memory that hosts share, look into them, and put them right.",
)

PoolArgument = Annotated[
    str, typer.Argument(metavar="POOL", help="A pool's name (in /dev/shm), or a path if it has a /.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def size_bytes(text: str) -> int:
    """`64M` is 64 x 2^20; without a unit it is bytes."""
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:iB)?", text.strip())
    if found is None:
        raise typer.BadParameter(f"got {text!r}; expected a size such as 4096, 64M or 2G")
    return int(found[1]) << UNITS[found[2]]


SizeArgument = Annotated[
    int, typer.Argument(metavar="SIZE", parser=size_bytes, help="A size, such as 64M or 2G.")
]


@app.command()
def create(
    pool: PoolArgument,
    size: SizeArgument,
    extent: Annotated[
        int, typer.Option(metavar="SIZE", parser=size_bytes, help="The unit in which memory is handed out.")
    ] = "2M",  # type: ignore[assignment]  # parsed
    max_regions: Annotated[int, typer.Option(help="The most regions at a time.")] = 256,
    format_existing: Annotated[
        bool,
        typer.Option(
            "--format", help="Make the pool in a file or dax device that exists; SIZE 0 takes all of it."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --format: overwrite a pool that is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a pool."""
    from emucxl.pool import Pool

    if format_existing:
        made = Pool.format(pool, size, extent_bytes=extent, max_regions=max_regions, overwrite=overwrite)
    else:
        made = Pool.create(pool, size, extent_bytes=extent, max_regions=max_regions)
    with made:
        if as_json:
            console.show_json({"path": str(made.path), **_stats(made)})
            return
        stats = made.stats()
        print(f"{printable(str(made.path))}: {stats.num_extents} extents of {_size(stats.extent_bytes)}")


@app.command("list")
def list_pools(as_json: Json = False) -> None:
    """List the pools in /dev/shm."""
    from emucxl.pool import named_pools

    found = [_summary(name) for name in named_pools()]
    if as_json:
        console.show_json({"pools": found})
    elif found:
        console.show(_list_table(found))
    else:
        print("no pools")


@app.command()
def show(pool: PoolArgument, as_json: Json = False) -> None:
    """Show a pool's hosts and regions. Changes nothing."""
    from emucxl.pool import Pool

    with Pool.open(pool, read_only=True) as opened:
        if as_json:
            console.show_json(description(opened))
        else:
            console.show(*_renderables(opened))


@app.command()
def release(pool: PoolArgument, tag: Annotated[str, typer.Argument(help="The region's tag.")]) -> None:
    """Free a region, or have it freed as soon as the hosts that have it open let go."""
    from emucxl.pool import Pool

    with Pool.open(pool) as opened, opened.join("emucxl pool release") as host:
        host.open(tag, writable=True).release()
        left = [region for region in opened.regions() if region.tag == tag]
    if left and (left[0].readers or left[0].writers):
        print(f"{printable(tag)} is freed once the hosts in slots {_slots(left[0])} let go")
    else:
        print(f"{printable(tag)} is free")


@app.command()
def reclaim(
    pool: PoolArgument,
    kill: Annotated[
        bool,
        typer.Option(
            "--kill", help="Kill processes whose hosts were fenced but still hold memory; implies --wait."
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Wait out the leases of silent hosts that cannot be looked at, such as another machine's.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fence hosts that are gone or silent, and free what they held. Hosts do the same all the time."""
    from emucxl.pool import Pool

    with Pool.open(pool) as opened:
        report = opened.reclaim(kill=kill)
        if wait or kill:
            _tell_wait(opened)
            report = report.followed_by(opened.reclaim(kill=kill, wait=True))
    if as_json:
        console.show_json(asdict(report))
        return
    print(
        f"fenced {report.fenced_hosts} hosts, freed {report.freed_hosts} hosts, {report.freed_regions} regions and "
        f"{report.freed_extents} extents"
    )
    if report.quarantined_hosts:
        end = "end them where they run: that cannot be done from here" if kill else "--kill ends them"
        print(f"{report.quarantined_hosts} fenced hosts hold on to memory: their processes live ({end})")


def _tell_wait(pool: Pool) -> None:
    """Says on stderr whom a call that waits will wait for."""
    from emucxl.pool.patience import Patience

    silent = Patience().waits_for(pool.hosts(), 0)
    if silent:
        names = ", ".join(host.name for host in silent)
        most_s = max(host.lease_s for host in silent) * 2.5 + 0.5
        typer.echo(f"waiting up to {most_s:.0f} s for a sign of life of {names}", err=True)


@app.command()
def check(pool: PoolArgument, as_json: Json = False) -> None:
    """Verify every invariant of a pool's tables. Changes nothing."""
    from emucxl.pool import Pool

    with Pool.open(pool, read_only=True) as opened:
        opened.check()
        stats = opened.stats()
    if as_json:
        console.show_json({"ok": True, "num_extents": stats.num_extents, "num_regions": stats.num_regions})
    else:
        print(f"{stats.num_extents} extents and {stats.num_regions} regions are consistent")


@app.command()
def poison(
    pool: PoolArgument,
    offset: Annotated[
        int, typer.Argument(metavar="OFFSET", parser=size_bytes, help="The place of the first bad byte.")
    ],
    size: SizeArgument,
    region: Annotated[
        str | None, typer.Option(metavar="TAG", help="Count from this region's start, not from the pool's.")
    ] = None,
) -> None:
    """Mark bytes as bad, as a device reports them: accesses fail, and their extents are retired."""
    from emucxl.pool import Pool

    with Pool.open(pool) as opened:
        if region is None:
            opened.poison(offset, size)
        else:
            with opened.join("emucxl pool poison") as host, host.open(region) as opened_region:
                opened_region.poison(offset, size)
        stats = opened.stats()
    print(f"{stats.poisoned_extents} held extents have bad lines, {stats.retired_extents} are retired")


def description(pool: Pool) -> dict[str, Any]:
    """All that `show` tells, for JSON."""
    return {
        "path": str(pool.path),
        **_stats(pool),
        "hosts": [_plain(host) for host in pool.hosts()],
        "regions": [_plain(region) for region in pool.regions()],
        "poison": [asdict(each) for each in pool.poison_ranges()],
    }


def _stats(pool: Pool) -> dict[str, Any]:
    stats = pool.stats()
    return asdict(stats) | {"size_bytes": stats.size_bytes, "free_bytes": stats.free_bytes}


def _plain(record: Any) -> dict[str, Any]:
    """Enumerations by their names."""
    return {
        name: value.name.lower() if isinstance(value, Enum) else value
        for name, value in asdict(record).items()
    }


def _summary(name: str) -> dict[str, Any]:
    from emucxl.errors import EmucxlError
    from emucxl.pool import Pool, pool_path

    try:
        with Pool.open(name, read_only=True) as pool:
            return {"name": name, "path": str(pool.path), **_stats(pool)}
    except EmucxlError as error:
        return {"name": name, "path": str(pool_path(name)), "error": str(error)}


def _list_table(found: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table

    table = Table(title="Pools", title_justify="left", title_style="bold")
    table.add_column("name")
    for column in ("size", "free", "extent", "hosts", "regions", "retired"):
        table.add_column(column, justify="right")
    for pool in found:
        if "error" in pool:
            table.add_row(cell(pool["name"]), cell(pool["error"]))
            continue
        table.add_row(
            cell(pool["name"]),
            _size(pool["size_bytes"]),
            _size(pool["free_bytes"]),
            _size(pool["extent_bytes"]),
            str(pool["num_hosts"]),
            str(pool["num_regions"]),
            str(pool["retired_extents"]),
        )
    return table


def _renderables(pool: Pool) -> list[RenderableType]:
    from rich.text import Text

    stats = pool.stats()
    text = (
        f"{pool.path}: {_size(stats.size_bytes)} in {stats.num_extents} extents of {_size(stats.extent_bytes)}; "
        f"{stats.free_extents} free, {stats.held_extents} held, {stats.retired_extents} retired"
    )
    hosts, regions = pool.hosts(), pool.regions()
    return [
        cell(text),
        _hosts_table(hosts) if hosts else Text("no hosts"),
        _regions_table(regions, {host.slot: host.name for host in hosts}) if regions else Text("no regions"),
        *(Text(f"bad: {each.size_bytes} bytes at {each.offset}") for each in pool.poison_ranges()),
    ]


def _hosts_table(hosts: list[HostInfo]) -> RenderableType:
    from rich.table import Table

    table = Table(title="Hosts", title_justify="left", title_style="bold")
    for column in ("slot", "name", "state"):
        table.add_column(column)
    for column in ("epoch", "pid", "lease", "silent for", "owns", "quota"):
        table.add_column(column, justify="right")
    for host in hosts:
        table.add_row(
            str(host.slot),
            cell(host.name),
            host.state.name.lower(),
            str(host.epoch),
            str(host.pid) if host.is_here else f"{host.pid} elsewhere",
            f"{host.lease_s:g} s",
            "-" if host.silence_s is None else f"{host.silence_s:.1f} s",
            _size(host.owned_bytes),
            "-" if host.quota_bytes is None else _size(host.quota_bytes),
        )
    return table


def _regions_table(regions: list[RegionInfo], names: dict[int, str]) -> RenderableType:
    from rich.table import Table

    table = Table(title="Regions", title_justify="left", title_style="bold")
    for column in ("tag", "state", "kept", "others may", "owner", "open in slots"):
        table.add_column(column)
    for column in ("size", "extents", "bad"):
        table.add_column(column, justify="right")
    for region in regions:
        table.add_row(
            cell(region.tag),
            region.state.name.lower(),
            "yes" if region.persistent else "no",
            region.sharing.name.lower(),
            "-" if region.owner is None else cell(names.get(region.owner, str(region.owner))),
            _slots(region) or "-",
            _size(region.size_bytes),
            str(region.num_extents),
            str(region.poisoned_extents),
        )
    return table


def _slots(region: RegionInfo) -> str:
    """`1, 3w`: read in 1, written in 3."""
    slots = [*((slot, "") for slot in region.readers), *((slot, "w") for slot in region.writers)]
    return ", ".join(f"{slot}{mode}" for slot, mode in sorted(slots))


def _size(count: int) -> str:
    """The largest unit of which it is a whole number, or two decimals of the largest below it."""
    for unit, shift in reversed(UNITS.items()):
        if count >= 1 << shift:
            number = count / (1 << shift)
            return f"{number:.2f}".rstrip("0").rstrip(".") + (f" {unit}iB" if unit else " B")
    return "0 B"
