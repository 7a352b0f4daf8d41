import io
import json
from typing import Any

import pytest

from benchmarks.peers.protocol import TokenRecorder, converse


def replies_to(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    def fail() -> dict[str, Any]:
        raise RuntimeError("out of luck")

    replies = io.StringIO()
    operations = {"echo": lambda **arguments: arguments, "fail": fail}
    converse(operations, io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), replies)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def test_every_request_gets_one_line() -> None:
    assert replies_to({"op": "echo", "x": 1}, {"op": "echo"}) == [
        {"ok": True, "result": {"x": 1}},
        {"ok": True, "result": {}},
    ]


def test_a_failure_is_reported_and_survived(capsys: pytest.CaptureFixture[str]) -> None:
    failed, after = replies_to({"op": "fail"}, {"op": "echo"})
    assert failed == {"ok": False, "error": "RuntimeError: out of luck"}
    assert after["ok"]
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_operation_names_the_known_ones() -> None:
    (reply,) = replies_to({"op": "sing"})
    assert reply["error"] == "got op 'sing'; expected one of ['echo', 'fail']"


def test_quit_ends_the_conversation() -> None:
    assert replies_to({"op": "quit"}, {"op": "echo"}) == []


def test_the_first_time_is_when_the_last_sequence_begins() -> None:
    recorder = TokenRecorder(2)
    recorder.add(0, [1])
    recorder.add(0, [2])
    recorder.add(1, [3])
    recorder.add_step([4, 5])
    result = recorder.result()
    assert result["num_at_first"] == 3
    assert 0 < result["first_s"] <= result["total_s"]
    assert result["tokens"] == [[1, 2, 4], [3, 5]]
