"""tokenweave as a library: the example of a tensor-parallel block of one's own runs, and is as short as is said."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "weaving" / "woven_block.py"
PAGE = ROOT / "docs" / "weaving" / "library.md"
MOST_LINES = 40


def weaving() -> str:
    """The part of the example that weaves: the class of handlers and the function that runs them."""
    found = re.search(r"^class Woven:.*?(?=^@torch)", EXAMPLE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0].rstrip() + "\n"


def test_woven_equals_sequential_on_two_processes_and_prints_what_the_page_shows() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = PAGE.read_text().partition("<!-- output: python examples/weaving/woven_block.py -->")[2]
    block = re.search(r"```text\n(.*?)```", shown, re.DOTALL)
    assert block is not None, "the output block is missing"
    assert done.stdout == block[1]


def test_the_weaving_takes_less_than_forty_lines_and_is_what_the_page_shows() -> None:
    imports = re.findall(r"^from tokenweave.*$", EXAMPLE.read_text(), re.MULTILINE)
    lines = [line for line in weaving().splitlines() if line.strip()]
    assert len(imports) + len(lines) < MOST_LINES
    assert weaving() in PAGE.read_text()
    assert all(line in PAGE.read_text() for line in imports)
