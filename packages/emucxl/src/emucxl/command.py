"""The entry point of the `emucxl` command, which says so where the packages that it needs are missing."""

from __future__ import annotations

import sys

NEEDED = ("typer", "rich")


def main() -> None:
    """Run the command; exit status 1 without the packages of the extra `cli`, which the library does not need."""
    try:
        from emucxl.cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDED:
            raise
        print(f"emucxl: the command needs {error.name}: pip install {' '.join(NEEDED)}", file=sys.stderr)
        sys.exit(1)
    run()
