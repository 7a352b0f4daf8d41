"""The command line of the benchmarks, and the form of what they record."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serve.workloads import all_workloads
from emucxl.bench import harness
from interlace.cli.bench.workload import FULL

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
NAMES = [
    *(
        "serve",
        "prefix",
        "step",
        "limits",
        "random-model",
        "kv",
        "weave",
        "split",
        "kernels",
        "sampling",
        "collectives",
        "fused",
        "fused-cuda",
    ),
    *("alloc", "calls", "copy", "scaling"),
    "perplexity",
    "gpu",
]


def test_every_benchmark_is_listed_with_a_sentence(invoke: Callable[..., Any]) -> None:
    lines = [line.split(maxsplit=1) for line in invoke("list").stdout.splitlines()]
    assert [name for name, _ in lines] == NAMES
    assert all(sentence.endswith(".") for _, sentence in lines)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench"], "-m benchmarks serve"),
        (["bench", "weave", "ARGS=--quick --rounds 1"], "-m benchmarks weave --quick --rounds 1"),
        (["bench", "list"], "-m benchmarks list"),
    ],
)
def test_make_passes_the_name_and_the_options_on(words: list[str], expected: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert any(line.strip().endswith(expected) for line in done.stdout.splitlines()), done.stdout


def test_an_unknown_option_is_wrong_usage(invoke: Callable[..., Any]) -> None:
    assert invoke("serve", "--nonsense").exit_code == 2


def test_a_record_goes_beside_the_older_results(invoke: Callable[..., Any], tmp_path: Path) -> None:
    result = invoke("calls", "--quick", "--json", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("*/memory/calls-quick.json")
    assert json.loads(path.read_text()) == json.loads(result.stdout)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(RESULTS[0].parents[2])))
def test_results_that_were_recorded_before_are_of_the_same_format(path: Path) -> None:
    found = json.loads(path.read_text())
    for run in found.get("runs", [found]):
        assert run["format"] == harness.FORMAT
        assert {"benchmark", "source", "machine", "is_quick"} <= set(run)
        if run["benchmark"] == "serve":
            known = [workload.name for workload in FULL + all_workloads(is_quick=False)]
            assert {each["name"] for each in run["workloads"]} <= {
                *known,
                "prefill 8176",
            }  # cut to the context
        else:
            harness.table(harness.Report(**{name: run[name] for name in ("title", "rows", "notes", "results")},
                                         name=run["benchmark"], columns=run["columns"]))  # fmt: skip


def test_the_side_in_a_peers_python_imports_nothing_of_this_project() -> None:
    own = {"benchmarks", "emucxl", "tokenweave", "interlace"}
    for path in (ROOT / "benchmarks" / "peers").glob("*.py"):
        if path.stem in ("interlace", "fused"):  # our own systems
            continue
        tree = ast.parse(path.read_text())
        at_the_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in at_the_top if isinstance(node, ast.Import) for alias in node.names}
        names |= {
            node.module or "" for node in at_the_top if isinstance(node, ast.ImportFrom) and not node.level
        }
        assert not {name.partition(".")[0] for name in names} & own, path.name
