"""Fails where a wheel holds what does not belong into it, or lacks what does. Usage: contents.py WHEEL..."""

from __future__ import annotations

import sys
from pathlib import PurePosixPath
from zipfile import ZipFile

NEEDED = {
    "emucxl": {"libemucxl.so", "_buffer.abi3.so", "py.typed", "presets.toml"},
    "tokenweave": {"libtokenweave.so", "py.typed"},
    "interlace": {"py.typed"},
}
SUFFIXES = {".py", ".pyi", ".so", ".toml", ".typed"}


def faults_of(path: str) -> list[str]:
    name = PurePosixPath(path).name.partition("-")[0]
    with ZipFile(path) as wheel:
        files = [PurePosixPath(file) for file in wheel.namelist() if not file.endswith("/")]
    own = [file for file in files if file.parts[0] == name]
    faults = [f"no {needed}" for needed in NEEDED[name] - {file.name for file in own}]
    for file in files:
        if file.parts[0] not in (name, f"{name}.libs") and not file.parts[0].endswith(".dist-info"):
            faults.append(f"{file} lies outside {name}/")
        elif file in own and file.suffix not in SUFFIXES:
            faults.append(f"{file} is no part of a package")
        elif file in own and file.suffix == ".so" and file.name not in NEEDED[name]:
            faults.append(f"{file} is no library that the package loads")
    if not any(file.name == "LICENSE" for file in files):
        faults.append("no LICENSE")
    print(f"{path}: {len(own)} files" + "".join(f"\n  {fault}" for fault in faults))
    return faults


if __name__ == "__main__":
    sys.exit(1 if [fault for path in sys.argv[1:] for fault in faults_of(path)] else 0)
