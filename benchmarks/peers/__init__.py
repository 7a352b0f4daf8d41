"""The worker side of the benchmark: one module per system, run inside that system's own Python environment.

A peer's environment has no Interlace, so this folder imports nothing of Interlace (only `interlace.py` does, and only
that system's worker loads it). `START` is the command line that runs a worker from this folder under any Python.
"""

from __future__ import annotations

from pathlib import Path

# Loads this folder as a package of its own name: nothing else of Interlace's environment, and nothing that lies in
# the current directory, becomes importable.
START = (
    "import sys; sys.path[:] = [entry for entry in sys.path if entry];"  # as -P does, which Python has from 3.11 on
    "import importlib.util as u, importlib as i;"
    "f, kind = sys.argv[1:3];"
    "s = u.spec_from_file_location('interlace_bench_peers', f + '/__init__.py', submodule_search_locations=[f]);"
    "m = u.module_from_spec(s); sys.modules[s.name] = m; s.loader.exec_module(m);"
    "i.import_module('interlace_bench_peers.protocol').main(kind)"
)


def start_command(python: str, kind: str) -> list[str]:
    """The command that runs the worker `kind` ("hf", "vllm", ...) under the interpreter `python`."""
    return [python, "-c", START, str(Path(__file__).parent), kind]
