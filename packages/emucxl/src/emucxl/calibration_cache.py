"""Where calibrations are kept: one file in the cache directory, for one machine as it runs now.

A figure holds for a processor with its microcode and its frequencies, a kernel, a boot (a virtual machine may come up
elsewhere) and a library, and for the cores that the process may run on. When one of the first is another, all that was
kept is dropped; of each set of cores there is one calibration.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from emucxl import __version__, native
from emucxl.environment import cache_directory

_FORMAT = 2
_MOST_KEPT = 16
_CPU = Path("/sys/devices/system/cpu")
_FREQUENCY = (
    "cpu0/cpufreq/cpuinfo_max_freq",
    "cpu0/cpufreq/scaling_max_freq",
    "cpu0/cpufreq/scaling_governor",
    "cpufreq/boost",
)


def path() -> Path:
    return cache_directory() / "calibration.json"


def load() -> dict[str, Any]:
    """The figures of this machine on these cores.

    Raises:
        LookupError: there are none.
    """
    found = _read().get(cores())
    if not isinstance(found, dict):
        raise LookupError("no calibration is kept for these cores")
    return found


def store(figures: dict[str, Any]) -> None:
    """Keeps `figures` for these cores, where that is possible. The newest sets of cores are kept."""
    kept = _read()
    kept.pop(cores(), None)
    kept = dict([*kept.items(), (cores(), figures)][-_MOST_KEPT:])
    place = path()
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=place.name, delete=False)  # noqa: SIM115
        try:
            with file:
                json.dump({"format": _FORMAT, "machine": machine(), "calibrations": kept}, file, indent=1)
            os.replace(file.name, place)
        except BaseException:
            os.unlink(file.name)  # on a full disk each later start would leave another one
            raise


def _read() -> dict[str, Any]:
    """By cores; empty where the file is missing, damaged, or of another machine."""
    try:
        content = json.loads(path().read_text())
        if (
            content["format"] == _FORMAT
            and content["machine"] == machine()
            and isinstance(content["calibrations"], dict)
        ):
            return dict(content["calibrations"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return {}


def cores() -> str:
    """The cores that this process may run on, such as `0-3,8`."""
    numbers = sorted(os.sched_getaffinity(0))
    firsts = [number for number in numbers if number - 1 not in numbers]
    lasts = [number for number in numbers if number + 1 not in numbers]
    return ",".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(firsts, lasts, strict=True)
    )


def machine() -> dict[str, Any]:
    """Returns the facts that a calibration depends on, besides the cores."""
    return {
        "processor": _processor("model name") or platform.machine(),
        "microcode": _processor("microcode"),
        "frequency": [_text(_CPU / name) for name in _FREQUENCY],
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "boot": _text(Path("/proc/sys/kernel/random/boot_id")),
        "library": __version__,
        "abi": native.ABI_VERSION,
    }


def _processor(name: str) -> str | None:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return None


def _text(place: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return place.read_text().strip()
    return None
