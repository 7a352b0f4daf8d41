from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from emucxl.errors import SegmentError
from interlace.cli import console, session
from interlace.errors import ModelNotFound, RankFailed
from tokenweave.errors import CommunicatorTimeout


def test_help_lists_every_command(invoke: Any) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("generate", "chat", "pull", "plan", "doctor", "bench", "kv-sim"):
        assert command in result.stdout


def test_no_arguments_show_the_help(invoke: Any) -> None:
    assert "generate" in invoke().output


def test_version_is_that_of_the_package(invoke: Any) -> None:
    from importlib.metadata import version

    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"interlace {version('interlace')}\n")


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, interlace.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFound("no model 'x'"),
        RankFailed("rank 1 was killed", 1),
        CommunicatorTimeout("waited"),
        SegmentError("no memory"),
    ],
)
def test_an_error_of_the_packages_is_one_line_and_status_1(
    invoke: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(session, "open_llm", lambda config: _raise(error))
    result = invoke("generate", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"error: {error}\n")


def test_debug_shows_the_traceback(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "open_llm", lambda config: _raise(ModelNotFound("no model 'x'")))
    assert isinstance(invoke("--debug", "generate", "Hi").exception, ModelNotFound)


def test_a_defect_is_not_hidden(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "open_llm", lambda config: _raise(ZeroDivisionError()))
    assert isinstance(invoke("generate", "Hi").exception, ZeroDivisionError)


def test_ctrl_c_ends_with_status_130(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "open_llm", lambda config: _raise(KeyboardInterrupt()))
    assert invoke("generate", "Hi").exit_code == 130


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("generate", "--nonsense"), ("generate", "--tp", "two"), ("plan", "show")]
)
def test_wrong_usage_is_status_2(invoke: Any, arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_a_message_of_many_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error(ValueError("pip said:\n  no\n"))
    assert capsys.readouterr().err == "error: pip said: no\n"


def test_a_working_directory_that_is_gone_is_one_line_and_status_1() -> None:
    gone = "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)"
    code = f"{gone}; from interlace.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the working directory is gone: cd to one that exists\n"


def test_progress_in_starting_is_shown_beside_the_spinner_while_it_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("rich.status.Status.update", lambda status, text: shown.append(text))
    level = console.PROGRESS.level
    with console.working("loading m", shown=True):
        console.PROGRESS.info("captured %d of %d", 1, 3)
    with console.working("loading m", shown=False):
        console.PROGRESS.info("captured %d of %d", 2, 3)
    assert shown == ["loading m: captured 1 of 3"]
    assert (console.PROGRESS.handlers, console.PROGRESS.level) == ([], level)


def _raise(error: BaseException) -> None:
    raise error
