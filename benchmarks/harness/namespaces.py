"""Two hosts on one machine: network namespaces joined by a cable (a veth pair), sharing nothing else of the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PREFIX = "interlace-"  # of a namespace's name; then the process that made it, and which end it is
INTERFACE = "eth0"
BURST_BYTES = 256 * 1024  # what a shaped end lets out at once: a millisecond at 0.25 GB/s


class NamespacesNotPermitted(Exception):
    """Network namespaces cannot be made here."""


@dataclass(frozen=True)
class NetworkHost:
    """One end of the cable."""

    namespace: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """The words to put before a command that is to run on this host."""
        return ["ip", "netns", "exec", self.namespace]

    def shape(self, bandwidth_gbps: float) -> None:
        """Has the kernel let no more than that out of this end, in 1e9 bytes per second (a token bucket).

        Raises:
            NamespacesNotPermitted: the kernel cannot.
        """
        rate = f"{round(bandwidth_gbps * 8e9)}bit"
        _run(
            *("tc", "-n", self.namespace, "qdisc", "replace", "dev", INTERFACE, "root"),
            *("tbf", "rate", rate, "burst", str(BURST_BYTES), "latency", "50ms"),
        )

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """`command` on this host; `options` are those of Popen."""
        return subprocess.Popen(
            [*self.prefix, *command],
            env={**os.environ, **(environment or {})},
            text=True,
            **options,
        )


@contextmanager
def two_namespaces() -> Iterator[tuple[NetworkHost, NetworkHost]]:
    """Two hosts that see each other and nothing else; gone afterwards, also after a failure.

    What a process that was killed has left is removed first.

    Raises:
        NamespacesNotPermitted: with the reason, e.g. that it takes root.
    """
    if shutil.which("ip") is None:
        raise NamespacesNotPermitted("there is no `ip` command (iproute2)")
    _remove_orphans()
    hosts = tuple(NetworkHost(f"{PREFIX}{os.getpid()}-{end}", f"10.213.7.{end}") for end in (1, 2))
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("-n", hosts[0].namespace, "link", "add", INTERFACE, "type", "veth",
            "peer", "name", INTERFACE, "netns", hosts[1].namespace)  # fmt: skip
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            for link in ("lo", INTERFACE):
                _ip("-n", host.namespace, "link", "set", link, "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:  # the cable goes with them
            _remove(host.namespace)


def _remove_orphans() -> None:
    """Removes the namespaces of processes that are no more."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        name = line.split()[0]
        maker = re.fullmatch(rf"{PREFIX}(\d+)-[12]", name)
        if maker is not None and not os.path.exists(f"/proc/{maker[1]}"):
            _remove(name)


def _remove(namespace: str) -> None:
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)


def torchrun_variables(rank: int, world_size: int, master: NetworkHost, port: int) -> dict[str, str]:
    """The variables that torchrun would set for one rank, and the interface that gloo is to use."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master.address,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": INTERFACE,
    }


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NamespacesNotPermitted(f"`{' '.join(command)}`: {error}") from None
    if done.returncode != 0:
        raise NamespacesNotPermitted(f"`{' '.join(command)}` says: {done.stderr.strip()}")
