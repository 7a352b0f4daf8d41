"""The documentation keeps its word: its links lead somewhere, its programs run, its commands and options exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import interlace
from benchmarks.command import app as benchmarks_app
from emucxl.cli.main import app as emucxl_app
from interlace.cli.main import app
from interlace.environment import cache_directory
from interlace.models.sources import ALIASES
from interlace.models.wheel import is_fetched
from support.engine_fakes import FakeRanks

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
APPS = {"interlace": app, "emucxl": emucxl_app}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(
    r"^```python\n((?:(?!```).*\n)*)```\n\n<!-- output -->\n\n```text\n((?:(?!```).*\n)*)```$", re.MULTILINE
)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:work|root|home|tmp|Users|opt)/")
TABLE_OF_GENERATE = ["model", "ranks", "prompt", "generated", "time to first token", "peak memory per rank"]


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


def programs() -> list[Any]:
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, "python"))
    ]


def commands() -> list[Any]:
    """Every line of the shell blocks."""
    lines = [
        (page.name, line.strip())
        for page in PAGES
        for text in blocks(page, "bash")
        for line in text.replace("\\\n", " ").splitlines()
    ]
    return [pytest.param(line, id=f"{name}: {line[:40]}") for name, line in lines if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_a_file(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{target} leads nowhere"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_path_of_one_machine(page: Path) -> None:
    assert not ABSOLUTE_PATH.findall(page.read_text())


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in navigation


@pytest.mark.parametrize("program", programs())
def test_programs_run(program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On fake ranks, so that what is tested is the program, not a model. Files that it writes are nobody's."""
    monkeypatch.chdir(tmp_path)
    for name in ("LLM", "AsyncLLM"):
        engine = getattr(interlace, name)
        monkeypatch.setattr(interlace, name, on_fake_ranks(engine), raising=False)
    exec(compile(program, "documentation", "exec"), {"__name__": "__main__"})


def printing_programs() -> list[Any]:
    return [
        pytest.param(*found, id=f"{page.name}-{number}")
        for page in PAGES
        for number, found in enumerate(PRINTS.findall(page.read_text()))
    ]


@pytest.mark.parametrize(("program", "output"), printing_programs())
def test_programs_print_what_is_shown(program: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(program, "documentation", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == output


def on_fake_ranks(engine: Any) -> Any:
    def make(model: str, **options: Any) -> Any:
        return engine(model, ranks=FakeRanks(max_model_len=512), **options)

    return make


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        if words[1] == "bench":
            name, arguments = (*words[2:], *["serve", "ARGS="][len(words) - 2 :])[:2]
            check_command(benchmarks_app, [name, *shlex.split(arguments.removeprefix("ARGS="))])
        return
    starts = [at for at, word in enumerate(words) if word.removeprefix(".venv/bin/") in APPS]
    if not starts:
        pytest.skip("not a command of this project")
    own = words[starts[0] :]
    check_command(APPS[own[0].removeprefix(".venv/bin/")], own[1 : own.index("|") if "|" in own else None])


def check_command(app: typer.Typer, words: list[str]) -> None:
    """Follows `words` down the command tree; whatever starts with a dash must be an option there."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]}"
        command = command.commands[words[0]]
        words = words[1:]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    for word in words:
        assert not word.startswith("--") or word in options, f"{command.name} has no option {word}"


def shown_by_make_run(page: Path) -> str:
    block = FENCE.search(page.read_text().partition("<!-- output: make run -->")[2])
    assert block is not None, "the output block is missing"
    return block[2]


def test_readme_and_quickstart_show_the_same_run() -> None:
    assert shown_by_make_run(ROOT / "README.md") == shown_by_make_run(ROOT / "docs" / "quickstart.md")


@pytest.mark.slow
def test_make_run_gives_the_answer_that_is_shown() -> None:
    """With the same dtype; another one, which `auto` is on another processor, may end it in other words."""
    if not is_fetched(ALIASES["smollm2"], cache_directory() / "models" / "smollm2"):
        pytest.skip("smollm2 has not been fetched: `make run` does")
    recipe = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(recipe.stdout.replace("\\\n", " "))
    shown = shown_by_make_run(ROOT / "README.md").splitlines()
    _, weights, dtype, _ = shown[2].removeprefix("model").strip().split(", ")
    assert weights.startswith("weights in "), "those of the file's blocks"
    answered = CliRunner().invoke(app, [*words[1:], "--dtype", dtype, "--quantize", "stored"])
    assert answered.exit_code == 0, answered.output
    printed = answered.stdout.splitlines()
    assert printed[:1] + printed[2:4] == shown[:1] + shown[2:4]


def test_the_readme_shows_what_make_run_prints() -> None:
    """An answer, an empty line, and the table, row by row."""
    lines = shown_by_make_run(ROOT / "README.md").splitlines()
    assert [line[:22].strip() for line in lines[-6:]] == TABLE_OF_GENERATE
    assert lines[-7] == ""
    assert re.match(r"\d+ tokens, [\d,]+ tokens/s \(prefill\)", lines[-4][23:])


def test_the_plan_in_the_documentation_is_the_one_that_is_printed() -> None:
    if not is_fetched(ALIASES["smollm2"], cache_directory() / "models" / "smollm2"):
        pytest.skip("smollm2 has not been fetched: `make run` does")
    command = ["plan", "show", "smollm2", "--tokens", "512", "--tp", "2"]
    shown = (
        (ROOT / "docs" / "architecture.md")
        .read_text()
        .partition(f"<!-- output: interlace {' '.join(command)} -->")
    )
    block = FENCE.search(shown[2])
    assert block is not None, "the output block is missing"
    assert block[2] == CliRunner().invoke(app, command).stdout


@pytest.mark.parametrize(
    ("page", "command"),
    [
        (page, command)
        for page in PAGES
        for command in re.findall(r"<!-- output ends: interlace (.+) -->", page.read_text())
    ],
    ids=str,
)
def test_a_command_ends_with_the_output_that_is_shown(page: Path, command: str) -> None:
    if not is_fetched(ALIASES["smollm2"], cache_directory() / "models" / "smollm2"):
        pytest.skip("smollm2 has not been fetched: `make run` does")
    block = FENCE.search(page.read_text().partition(f"<!-- output ends: interlace {command} -->")[2])
    assert block is not None, "the output block is missing"
    printed = CliRunner().invoke(app, shlex.split(command)).stdout
    assert printed.endswith("\n" + block[2])


def test_make_help_lists_every_target_with_a_description() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for target in ("run", "chat", "test", "check", "docs", "bench", "clean"):
        assert re.search(rf"^make {target} +\w", done.stdout, re.MULTILINE), target


def docstrings(path: Path) -> list[str]:
    """Every docstring of a file, those of attributes included."""
    bodies = [getattr(node, "body", None) for node in ast.walk(ast.parse(path.read_text()))]
    statements = [statement for body in bodies if isinstance(body, list) for statement in body]
    constants = [statement.value for statement in statements if isinstance(statement, ast.Expr)]
    return [
        found.value for found in constants if isinstance(found, ast.Constant) and isinstance(found.value, str)
    ]


@pytest.mark.parametrize(
    "folder", ["packages/*/src", "packages/*/tests", "tests", "examples", "benchmarks", "packaging", "docs"]
)
def test_a_docstring_says_what_its_subject_is_or_does(folder: str) -> None:
    """So it begins with a subject or a verb, not with "What"."""
    found = [path for root in ROOT.glob(folder) for path in root.rglob("*.py")]
    assert found
    riddles = [(path.name, text) for path in found for text in docstrings(path) if text.startswith("What")]
    assert not riddles
