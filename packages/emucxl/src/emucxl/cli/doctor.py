"""`emucxl doctor`: which memories are real here, which are modelled, and what is missing and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from emucxl.cli import console
from emucxl.cli.text import printable


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which tiers are real and which modelled here, and what is missing. Status 1 when emucxl cannot work."""
    from emucxl.doctor import examine, real_tiers

    report = examine()
    tiers = dict(real_tiers(report))
    if as_json:
        console.show_json({"tiers": tiers, **report})
    else:
        _print("tiers", tiers.items())
        for section in ("providers", "machine", "numa", "cxl", "timing", "library"):
            _print(section, LINES[section](report[section]))
        print()
        for problem in report["problems"]:
            print(f"problem: {problem}")
        print("emucxl cannot work here." if report["problems"] else "emucxl can work here.")
    if report["problems"]:
        raise typer.Exit(1)


Lines = Iterator[tuple[str, str]]


def _print(section: str, lines: Any) -> None:
    print(section)
    for name, text in lines:
        print(f"  {name:<16} {printable(text)}")


def _providers(facts: dict[str, Any]) -> Lines:
    for name, provider in facts.items():
        yield name, provider["what"] if provider["available"] else f"unavailable: {provider['reason']}"


def _machine(facts: dict[str, Any]) -> Lines:
    yield "processor", facts["processor"]
    yield "cores", f"{facts['cores']}, of which this process may use {facts['usable_cores']}"
    yield "memory", f"{_size(facts['memory_bytes'])}, of which {_size(facts['available_bytes'])} available"
    yield "cpu quota", console.cpu_quota(facts["cpu_quota_cores"], facts["cpu_group"], facts["num_threads"])
    yield "memory limit", console.memory_limit(facts["memory_limit_bytes"], facts["memory_group"])
    yield (
        "huge pages",
        f"transparent: {facts['transparent_huge_pages']}; in shared memory: {facts['shared_huge_pages']}; "
        f"reserved: {facts['reserved_huge_pages']}",
    )
    yield "kernel", facts["kernel"]
    yield "python", facts["python"]


def _numa(facts: dict[str, Any]) -> Lines:
    for node in facts["nodes"]:
        cores = f"cores {node['cores']}" if node["cores"] else "no cores"
        distances = " ".join(map(str, node["distances"]))
        yield f"node {node['node']}", f"{_size(node['memory_bytes'])}, {cores}, distances {distances}"
    if not facts["nodes"]:
        yield "nodes", "none: this kernel has no NUMA"


def _cxl(facts: dict[str, Any]) -> Lines:
    yield "driver", "loaded" if facts["driver"] else "not loaded"
    for device in facts["memory_devices"]:
        sizes = f"{_size(device['volatile_bytes'])} volatile, {_size(device['persistent_bytes'])} persistent"
        yield device["name"], f"{sizes}, NUMA node {device['numa_node']}"
    yield "regions", ", ".join(facts["regions"]) or "none"
    for device in facts["dax_devices"]:
        access = "" if device["may_open"] else ", which this user may not open"
        yield "dax device", f"{device['path']}, {_size(device['size_bytes'])}{access}"
    if not facts["dax_devices"]:
        yield "dax devices", "none"


def _timing(facts: dict[str, Any]) -> Lines:
    even = "even on all cores" if facts["invariant_tsc"] else "not said to be even on all cores"
    yield "clock", f"{facts['clock_source']}; TSC {even}"
    yield "membarrier", "yes" if facts["membarrier"] else "no"
    found = facts["calibration"]
    if found is None:
        yield (
            "calibration",
            "none yet: `emucxl calibrate`, or the first modelled tier on the real clock, makes it",
        )
    else:
        yield (
            "calibration",
            f"64 bytes: {found['read_latency_ns']:.0f} ns read, {found['write_latency_ns']:.0f} ns written; "
            f"{found['read_bandwidth_gbps']:.1f} GB/s read, {found['write_bandwidth_gbps']:.1f} GB/s written; "
            f"delays off by {found['latency_error']:+.1%} when tried out",
        )
        if found["least_latency_ns"] > 0:
            yield (
                "disturbed",
                f"something else ran while it was measured: latencies below {found['least_latency_ns']:.0f} ns are not "
                "modelled exactly; run `emucxl calibrate` when the machine is quiet",
            )


def _library(facts: dict[str, Any]) -> Lines:
    yield "version", facts["version"]
    yield "path", console.short_path(facts["path"])
    yield "size", f"{facts['size_bytes']:,} bytes"
    yield "ABI", str(facts["abi_version"])


LINES = {
    "providers": _providers,
    "machine": _machine,
    "numa": _numa,
    "cxl": _cxl,
    "timing": _timing,
    "library": _library,
}


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else console.megabytes(size_bytes)
