"""Standard streams that are closed, full, or carry what is not text: one line, the right status, no traceback."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest

from emucxl.cli import console, streams

COMMANDS = ("presets", "presets --json", "doctor", "bench --list", "--version", "--help", "pool --help")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_status_1(shell: Any, command: str) -> None:
    done = shell(f"$EMUCXL {command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write to standard output: No space left on device")
    assert done.stderr.count("\n") == 1


def test_a_closed_output_is_one_line_and_status_1(shell: Any) -> None:
    done = shell("$EMUCXL presets >&-")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Bad file descriptor" in done.stderr


def test_a_reader_that_has_gone_is_status_141_and_silence(shell: Any) -> None:
    done = shell("$EMUCXL presets --json | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))  # 0: all was written before the reader went
    done = shell("(sleep 1; exec $EMUCXL presets --json) | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_errors_that_cannot_be_told_keep_their_status(shell: Any, closed: str) -> None:
    assert shell(f"$EMUCXL pool show nonesuch {closed}").returncode == 1
    assert shell(f"$EMUCXL nonsense {closed}").returncode == 2


def test_a_working_directory_that_is_gone_changes_nothing(shell: Any) -> None:
    done = shell("mkdir /tmp/$$ && cd /tmp/$$ && rmdir /tmp/$$ && $EMUCXL doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("emucxl can work here.\n")


def test_what_an_encoding_lacks_is_escaped(shell: Any) -> None:
    done = shell("PYTHONIOENCODING=ascii $EMUCXL calibrate --help")
    assert (done.returncode, done.stderr) == (0, "")


PROGRAM = """
import sys
from emucxl.cli import console, streams
streams.prepare()
console.show_json({"text": "caf\\u00e9 \\ud800"})
print("caf\\u00e9")
sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("encoding", "text"), [("ascii", "caf\\xe9"), ("latin-1", "café"), ("utf-8", "café")]
)
def test_text_and_json_come_whole_in_any_encoding(encoding: str, text: str) -> None:
    environment = {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, timeout=60)
    lines = done.stdout.decode(encoding).splitlines()
    assert lines == ['{"text": "caf\\u00e9 \\ud800"}', text]
    assert done.stderr == b""


class Piped(io.TextIOWrapper):
    def __init__(self, data: bytes, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)


def test_input_that_is_no_text_names_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(b"caf\xe9 x"))
    with pytest.raises(streams.InputError, match=r"byte 0xe9 at position 3.*utf-8.*iconv"):
        streams.read_text()


def test_a_line_that_is_no_text_leaves_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(b"one\r\n\xff\xfe\ntwo\n"))
    assert streams.read_line() == "one\n"
    with pytest.raises(streams.InputError):
        streams.read_line()
    assert streams.read_line() == "two\n"
    with pytest.raises(EOFError):
        streams.read_line()


def test_the_encoding_of_the_locale_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Piped("café".encode("latin-1"), "latin-1"))
    assert streams.read_text() == "café"


@pytest.mark.parametrize("text", ["café", "日本", "plain"])
def test_arguments_that_the_locale_could_not_read_are_read_as_utf_8(text: str) -> None:
    seen = text.encode().decode("ascii", "surrogateescape")  # what Python makes of it in the locale "C"
    assert streams.argument_text(seen) == text
    assert streams.argument_text(text) == text


def test_an_argument_that_is_no_text_names_the_byte() -> None:
    with pytest.raises(streams.InputError, match="argument has the byte 0xe9 at position 3"):
        streams.argument_text("caf\udce9")


def test_an_error_of_the_system_is_one_line(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from emucxl import doctor

    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr(doctor, "examine", refuse)
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (1, "error: Permission denied (EACCES): /secret\n")
    assert isinstance(invoke("--debug", "doctor").exception, PermissionError)


def test_a_path_is_short_without_a_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("pathlib.Path.cwd", gone)
    monkeypatch.setenv("HOME", "/home/user")
    assert console.short_path("/home/user/x") == "~/x"
