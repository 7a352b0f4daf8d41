"""Control groups: trees of files that stand for them, and real ones where this process may make some."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

GB = 1_000_000_000
REMOVAL_S = 60.0  # a group is busy until its last process is reaped
V1 = "{number} 1 0:{number} {top} {point} rw,nosuid shared:9 - cgroup cgroup rw,{controllers}"
V2 = "{number} 1 0:{number} {top} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


class FakeSystem:
    """The kernel's files below `root`: a machine with 64 GB, 40 of them available, without any group yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._groups: list[str] = []
        self._mounts: list[str] = []
        self.write("proc/meminfo", f"MemTotal: {64 * GB // 1024} kB\nMemAvailable: {40 * GB // 1024} kB\n")
        self._tell()

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def mount_v2(self, group: str, point: str = "/sys/fs/cgroup", top: str = "/") -> None:
        """The process is in `group`; the hierarchy is to be seen at `point`, from the group `top` on."""
        self._groups.append(f"0::{group}")
        self._mount(V2, point, top, "")

    def mount_v1(self, controllers: str, group: str, point: str, top: str = "/") -> None:
        self._groups.append(f"{len(self._groups) + 1}:{controllers}:{group}")
        self._mount(V1, point, top, controllers)

    def mount_elsewhere(self, line: str) -> None:
        """A mount as /proc/self/mountinfo writes it."""
        self._mounts.append(line)
        self._tell()

    def group(self, directory: str, files: Mapping[str, object]) -> None:
        for name, value in files.items():
            self.write(f"{directory}/{name}", f"{value}\n")

    def _mount(self, form: str, point: str, top: str, controllers: str) -> None:
        number = 30 + len(self._mounts)
        escaped = point.replace(" ", "\\040")
        line = form.format(number=number, top=top, point=escaped, controllers=controllers)
        self.mount_elsewhere(line)

    def _tell(self) -> None:
        self.write("proc/self/cgroup", "".join(f"{line}\n" for line in self._groups))
        self.write("proc/self/mountinfo", "".join(f"{line}\n" for line in self._mounts))


@contextmanager
def real_cgroup(controller: str, v1: Mapping[str, str], v2: Mapping[str, str]) -> Iterator[Path | None]:
    """A group of `controller` below this process's own, with the files of its version written into it.

    None where this process may not make one. Processes in it must have ended when the block does.
    """
    made = _make(controller, v1, v2)
    try:
        yield made
    finally:
        if made is not None:
            _remove(made)


def _make(controller: str, v1: Mapping[str, str], v2: Mapping[str, str]) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = Path(f"/sys/fs/cgroup/{controllers}{name}") / f"test-{os.getpid()}-{threading.get_ident()}"
        try:
            group.mkdir()
            for file, text in (v1 if controllers else v2).items():
                (group / file).write_text(text)
            return group
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
    return None


def _remove(group: Path) -> None:
    deadline = time.monotonic() + REMOVAL_S
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
