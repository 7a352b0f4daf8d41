from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from emucxl import doctor
from emucxl.errors import InUseError, TierFullError

COMMANDS = ("doctor", "presets", "calibrate", "top", "bench")


def test_help_lists_every_command(invoke: Any) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in (*COMMANDS, "pool"):
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(invoke: Any, command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version_is_that_of_the_package(invoke: Any) -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"emucxl {version('emucxl')}\n")


def test_the_command_line_starts_with_neither_torch_nor_numpy_nor_what_is_above() -> None:
    code = (
        "import sys, emucxl.cli.main\n"
        "wrong = {'torch', 'numpy', 'interlace', 'tokenweave', 'rich.live', 'emucxl.native'} & set(sys.modules)\n"
        "sys.exit(str(wrong) if wrong else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("error", [TierFullError("tier 'local'\n is full"), InUseError("a view is alive")])
def test_an_error_of_emucxl_is_one_line_and_status_1(
    invoke: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: _raise(error))
    result = invoke("doctor")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {' '.join(str(error).split())}\n"


def test_debug_shows_the_traceback(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: _raise(TierFullError("full")))
    assert isinstance(invoke("--debug", "doctor").exception, TierFullError)


def test_a_defect_is_not_hidden(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: _raise(ZeroDivisionError()))
    assert isinstance(invoke("doctor").exception, ZeroDivisionError)


def test_ctrl_c_ends_with_status_130(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: _raise(KeyboardInterrupt()))
    result = invoke("doctor")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("doctor", "--nonsense"),
        ("presets", "extra"),
        ("calibrate", "--budget", "long"),
        ("calibrate", "--budget", "0"),
        ("top", "--interval", "0"),
        ("bench",),
    ],
)
def test_wrong_usage_is_status_2(invoke: Any, arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_an_unknown_command_is_told_which_there_are(invoke: Any) -> None:
    def told(*arguments: str) -> str:
        return " ".join(invoke(*arguments).stderr.replace("\u2502", " ").split())

    assert "got the command 'nonesuch'; expected one of doctor, presets" in told("nonesuch")
    assert "got the command 'nonesuch'; expected one of create, list" in told("pool", "nonesuch")


def test_a_reader_that_stops_early_hears_nothing_more(shell: Any) -> None:
    done = shell("$EMUCXL bench --list | head -1")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def _raise(error: BaseException) -> None:
    raise error
