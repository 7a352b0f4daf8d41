"""Python processes that the packages start leave the working directory out of what they import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers import start_command
from interlace import LLM, SamplingParams
from support.tiny_models import make_model

ROOT = Path(__file__).parent.parent
SHADOWED = ("random", "torch", "json", "importlib", "socket", "numpy", "interlace")


def commands(tree: ast.AST) -> Iterator[list[str]]:
    """Returns the words after sys.executable in each list that has it. A word that is no literal is ""."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List):
            words = [ast.unparse(item) for item in node.elts]
            if "sys.executable" in words:
                after = node.elts[words.index("sys.executable") + 1 :]
                yield [str(item.value) if isinstance(item, ast.Constant) else "" for item in after]


def test_every_command_that_runs_a_module_has_the_safe_path() -> None:
    found = {
        path: command
        for path in [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("benchmarks/*/*.py")]
        if path.parent.name != "tests"
        for command in commands(ast.parse(path.read_text(), str(path)))
        if "-m" in command or "-c" in command
    }
    assert len(found) >= 5
    assert [str(path) for path, command in found.items() if command[0] != "-P"] == []


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose modules have the names of those that a child imports."""
    for name in SHADOWED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            "raise RuntimeError('a module of the user was imported')\n"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ranks_start_beside_modules_of_the_same_names(
    tmp_path_factory: pytest.TempPathFactory, hostile: Path
) -> None:
    model = make_model(tmp_path_factory.mktemp("ranks") / "tiny", "llama_9_heads")
    with LLM(str(model), tp=2, num_kv_blocks=8, threads=1) as llm:
        assert llm.generate([[1, 2]], SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_workers_of_benchmarks_start_there_too(hostile: Path, safe_path: str) -> None:
    done = subprocess.run(
        start_command(sys.executable, "limits"),
        input=json.dumps({"op": "nonsense"}) + "\n",
        env={"PYTHONSAFEPATH": safe_path} if safe_path else {},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "nonsense" in json.loads(done.stdout)["error"], done.stderr
