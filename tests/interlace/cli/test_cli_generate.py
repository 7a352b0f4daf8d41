from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.engine_fakes import ByteTokenizer, FakeRanks, greedy_tokens
from support.tiny_models import make_model

GREEDY = ("generate", "--temperature", "0", "--max-tokens", "12", "--ignore-eos")
TEMPLATED = "user: Hi\n"  # what the fake tokenizer's chat template makes of "Hi"


def greedy_text(prompt: str, count: int = 12) -> str:
    tokenizer = ByteTokenizer()
    return tokenizer.decode(greedy_tokens(tokenizer.encode(prompt), count))


def test_the_answer_goes_to_standard_output(invoke: Any, fake_model: FakeRanks) -> None:
    result = invoke(*GREEDY, "Hi")
    assert result.exit_code == 0
    assert result.stdout.removesuffix("\n") == greedy_text(TEMPLATED).removesuffix("\n")
    assert result.stderr == ""
    assert fake_model.closed


def test_raw_leaves_the_template_out(invoke: Any, fake_model: FakeRanks) -> None:
    found = json.loads(invoke(*GREEDY, "--raw", "--json", "Hi").stdout)
    assert found["prompt_token_ids"] == list(b"Hi")
    assert found["token_ids"] == greedy_tokens(list(b"Hi"), 12)


def test_a_system_message_comes_first(invoke: Any, fake_model: FakeRanks) -> None:
    found = json.loads(invoke(*GREEDY, "--system", "Be brief.", "--json", "Hi").stdout)
    assert found["prompt"] == "system: Be brief.\nuser: Hi\n"


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_the_prompt_may_come_from_standard_input(
    invoke: Any, fake_model: FakeRanks, arguments: tuple[str, ...]
) -> None:
    found = json.loads(invoke(*GREEDY, "--json", *arguments, input="Hi\n").stdout)
    assert found["prompt"] == TEMPLATED


def test_json_is_one_object_with_everything_known(invoke: Any, fake_model: FakeRanks) -> None:
    found = json.loads(invoke(*GREEDY, "--seed", "7", "--logprobs", "2", "--json", "Hi").stdout)
    assert found["token_ids"] == greedy_tokens(list(TEMPLATED.encode()), 12)
    assert found["text"] == greedy_text(TEMPLATED)
    assert found["finish_reason"] == "length"
    assert (found["model"], found["tp"], found["communicator"], found["dtype"]) == (
        "smollm2",
        2,
        "shm",
        "float32",
    )
    assert found["seed"] == 7
    assert found["memory_per_rank_bytes"] == [400_000_000, 390_000_000]
    metrics = found["metrics"]
    assert (metrics["num_prompt_tokens"], metrics["num_output_tokens"]) == (len(TEMPLATED), 12)
    assert 0 < metrics["time_to_first_token_s"] < metrics["command_to_first_token_s"]


def test_json_logprobs_are_one_entry_per_token(invoke: Any, fake_model: FakeRanks) -> None:
    found = json.loads(invoke(*GREEDY, "--logprobs", "2", "--json", "Hi").stdout)
    assert [entry["token_id"] for entry in found["logprobs"]] == found["token_ids"]
    first = found["logprobs"][0]
    assert first["rank"] == 1  # greedy takes the likeliest
    assert first["top"][0] == {"token_id": first["token_id"], "logprob": first["logprob"], "rank": 1}
    assert len(first["top"]) == 2


def test_json_without_logprobs_has_none(invoke: Any, fake_model: FakeRanks) -> None:
    assert "logprobs" not in json.loads(invoke(*GREEDY, "--json", "Hi").stdout)


def test_any_of_several_stop_strings_ends_the_answer(invoke: Any, fake_model: FakeRanks) -> None:
    text = greedy_text(TEMPLATED)
    found = json.loads(invoke(*GREEDY, "--stop", "never there", "--stop", text[4:6], "--json", "Hi").stdout)
    assert (found["finish_reason"], found["stop_reason"]) == ("stop", text[4:6])
    assert found["text"] == text[: text.index(text[4:6])]


def test_table_follows_the_answer(invoke: Any, fake_model: FakeRanks) -> None:
    lines = invoke(*GREEDY, "--table", "Hi").stdout.splitlines()
    names = ["model", "ranks", "prompt", "generated", "time to first token", "peak memory per rank"]
    assert [line[:22].strip() for line in lines[-6:]] == names
    assert lines[-7] == ""
    assert "2, 1 thread each, communicator shm" in lines[-5]
    assert lines[-1].endswith("400.0 MB, 390.0 MB")


def test_raw_and_system_contradict_each_other(invoke: Any, fake_model: FakeRanks) -> None:
    assert invoke("generate", "--raw", "--system", "x", "Hi").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "0"), "top_p"),
        (("--max-tokens", "0"), "max_tokens"),
        (("--tp", "0"), "tp"),
        (("--dtype", "int3"), "dtype"),
        (("--max-tokens", "9999", "--raw", "x" * 500), "prompt"),
    ],
)
def test_a_bad_value_is_named(
    invoke: Any, fake_model: FakeRanks, arguments: tuple[str, ...], name: str
) -> None:
    result = invoke("generate", *arguments, *(() if "--raw" in arguments else ("Hi",)))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert name in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = (
        "import sys; from support.engine_fakes import FakeRanks; from interlace.cli import main, session;"
        "from interlace.engine.llm import LLM; session.open_llm = lambda config: LLM('fake', ranks=FakeRanks());"
        "sys.argv = ['interlace', 'generate', '--max-tokens', '60', '--ignore-eos', 'Hi']; main.main()"
    )
    tests = Path(__file__).parents[2]
    command = f"import sys; sys.path.insert(0, {str(tests)!r}); " + program
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert said == b""


@pytest.mark.slow
def test_a_real_model_over_two_ranks_answers_as_over_one(invoke: Any, tiny_model: Path) -> None:
    common = (
        *GREEDY,
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--threads",
        "1",
        "--json",
        "The capital",
    )
    one, two = (json.loads(invoke(*common, "--tp", tp).stdout) for tp in ("1", "2"))
    assert one["token_ids"] == two["token_ids"]
    assert (one["tp"], two["tp"], two["communicator"]) == (1, 2, "shm")
    assert len(two["memory_per_rank_bytes"]) == 2


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_ranks(tmp_path: Path) -> None:
    """As a terminal does it: every process of the foreground group gets the signal."""
    model = make_model(tmp_path / "long", "llama", max_position_embeddings=65536)
    arguments = [
        "generate",
        "--model",
        str(model),
        "--tp",
        "2",
        "--ignore-eos",
        "--max-tokens",
        "60000",
        "Hi",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "from interlace.cli.main import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left in the group
