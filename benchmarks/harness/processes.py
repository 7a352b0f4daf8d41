"""Child processes that run a module of the benchmarks. They import it from this checkout, wherever they start."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The checkout is named, and not the working directory, whose modules may have the names of others.
START = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), run_name='__main__')"


def module_command(module: str, *arguments: object) -> list[str]:
    """The command that runs `module`, as `python -m` would, with these arguments in `sys.argv[1:]`."""
    return [sys.executable, "-P", "-c", START, str(ROOT), module, *map(str, arguments)]
