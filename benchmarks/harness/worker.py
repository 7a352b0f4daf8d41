"""A system in a process of its own: started once, stopped (SIGSTOP) whenever it is not its turn.

Invariants
- Only the worker between `resume` and `pause` runs; an idle system cannot burn the cores others are timed on.
- Each worker leads its own process group, so pausing and killing reach the processes it starts itself.
- However this process ends, even killed, the groups end with it: a stopped process would never notice by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import start_command
from interlace.environment import subprocess_environment
from interlace.errors import BenchError

REPLY_TIMEOUT_S = 900.0  # a compiling peer takes minutes
QUIT_TIMEOUT_S = 20.0


class Worker:
    """Speaks JSON lines with one system."""

    def __init__(
        self,
        python: str,
        kind: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix`: what goes before the command that runs the worker, as `ip netns exec NAME`."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        self.started_at = time.perf_counter()
        self._guard = _guard()
        assert self._guard.stdin is not None
        guard_fd = self._guard.stdin.fileno()
        try:
            self._process = subprocess.Popen(
                [*prefix, *start_command(python, kind)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
                # The system says so itself, before it is one: this process may be killed before Popen returns.
                preexec_fn=lambda: os.write(guard_fd, b"%d\n" % os.getpid()),
                env=subprocess_environment(**(environment or {})),
            )
        except OSError:
            self._end_guard()
            self._log.close()
            raise

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises: BenchError with the system's own words when it fails, dies or does not answer in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError(self._death(f"before {op!r}")) from None
        reply: dict[str, Any] = json.loads(self._read_line(op))
        if not reply["ok"]:
            raise BenchError(f"{op!r} failed: {reply['error']}")
        result: dict[str, Any] = reply["result"]
        return result

    def pause(self) -> None:
        """Stop every process of the system."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let every process of the system go on."""
        self._signal(signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Resident memory of all its processes; pages they share are counted once between them."""
        return sum(map(_resident_bytes, _group_members(self._process.pid)))

    def close(self) -> None:
        """End the system politely, then for certain."""
        self.resume()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._end_guard()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _end_guard(self) -> None:
        self._guard.kill()  # before it reads the end of its input: the group's number may be somebody else's now
        self._guard.communicate()

    def _read_line(self, op: str) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        line, deadline = b"", time.monotonic() + REPLY_TIMEOUT_S
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([stdout], [], [], left)[0]:
                raise BenchError(f"no reply to {op!r} within {REPLY_TIMEOUT_S:.0f} s")
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                raise BenchError(self._death(f"during {op!r}"))
            line += chunk
        return line

    def _death(self, when: str) -> str:
        """How the process ended, by which signal if it was one, and what it printed last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT_TIMEOUT_S)
        code = self._process.returncode
        how = f"died of {signal.Signals(-code).name}" if code is not None and code < 0 else "died"
        self._log.seek(0)
        words = " | ".join(self._log.read().strip().splitlines()[-6:]) or "it printed nothing"
        return f"the worker {how} {when}: {words}"

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _guard() -> subprocess.Popen[bytes]:
    """A shell that kills the group it is told when its input ends, that is when this process has ended in any way."""
    script = 'read -r group && { read -r line; kill -KILL "-$group"; }'
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


@contextlib.contextmanager
def turn(worker: Worker) -> Iterator[Worker]:
    """The worker runs inside the block and is stopped after it."""
    worker.resume()
    try:
        yield worker
    finally:
        worker.pause()


def _group_members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # Fields after the command name, which may itself hold spaces and brackets: state, parent, group.
            if int((entry / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                members.append(int(entry.name))
    return members


def _resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
