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


def test_weights_in_a_tier_are_in_the_table_and_in_json(invoke: Any, fake_model: Any) -> None:
    fake_model.weights_tier_bytes = 300_000_000
    last = invoke(*GREEDY, "--table", "Hi").stdout.splitlines()[-1]
    assert last[:22].strip() == "weights per rank"
    assert last.endswith("300.0 MB in a tier, 90.0 MB local; 300.0 MB in a tier, 80.0 MB local")
    found = json.loads(invoke(*GREEDY, "--json", "Hi").stdout)
    assert found["weights_per_rank_bytes"] == [90_000_000, 80_000_000]
    assert found["weights_tier_per_rank_bytes"] == [300_000_000, 300_000_000]


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
    tests = Path(__file__).parents[4] / "tests"
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


def sampling_of(result: Any) -> dict[str, Any]:
    found = json.loads(result.stdout)["sampling"]
    return {name: found[name] for name in ("temperature", "top_k", "repetition_penalty")}


def test_the_model_s_sampling_comes_before_ours_and_what_is_typed_before_both(
    invoke: Any, fake_model: FakeRanks
) -> None:
    ask = ("generate", "--max-tokens", "4", "--ignore-eos", "--json", "Hi")
    assert sampling_of(invoke(*ask)) == {"temperature": 0.7, "top_k": -1, "repetition_penalty": 1.0}
    fake_model.sampling_defaults = {"temperature": 0.3, "top_k": 20}
    assert sampling_of(invoke(*ask)) == {"temperature": 0.3, "top_k": 20, "repetition_penalty": 1.0}
    typed = invoke(*ask, "--temperature", "0", "--top-k", "-1")
    assert sampling_of(typed) == {"temperature": 0.0, "top_k": -1, "repetition_penalty": 1.0}


def test_the_model_s_sampling_can_be_left_out(invoke: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / "generation_config.json").write_text('{"top_k": 3, "temperature": "hot"}')
    ask = ("generate", "--model", str(model), "--max-tokens", "2", "--num-kv-blocks", "16", "--json", "Hi")
    refused = invoke(*ask)
    assert refused.exit_code == 1
    assert "temperature='hot'" in refused.stderr
    expected = {"temperature": 0.7, "top_k": -1, "repetition_penalty": 1.0}
    assert sampling_of(invoke(*ask, "--generation-config", "none")) == expected


def test_what_is_for_the_chat_template_reaches_it(invoke: Any, fake_model: FakeRanks, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("é")
    (tmp_path / "tools.json").write_text('[{"type": "function"}]')
    options = ["--chat-template", str(tmp_path / "mine.jinja"), "--tools", str(tmp_path / "tools.json")]
    options += ["--template-kwargs", '{"effort": "high"}', "--no-enable-thinking"]
    found = json.loads(invoke(*GREEDY, *options, "--json", "Hi").stdout)
    expected = "chat_template=é effort=high enable_thinking=False tools=[{'type': 'function'}] "
    assert found["prompt"] == f"{expected}{TEMPLATED}"


@pytest.mark.parametrize(
    ("option", "content", "problem"),
    [
        ("--tools", b"{", "is not JSON"),
        ("--tools", b'{"a": 1}', "expected a JSON list of tools"),
        ("--tools", b"[1]", "expected a JSON list of tools"),
        ("--tools", b"\xff", "is not UTF-8 text"),
        ("--chat-template", b"\xff", "is not UTF-8 text"),
        ("--chat-template", None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_wrong_usage(
    invoke: Any, fake_model: FakeRanks, tmp_path: Path, option: str, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    result = invoke("generate", option, str(path), "Hi")
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("value", ["[1]", "{", "3"])
def test_variables_for_the_template_are_a_json_object(invoke: Any, fake_model: FakeRanks, value: str) -> None:
    assert invoke("generate", "--template-kwargs", value, "Hi").exit_code == 2


def test_raw_has_no_template_to_give_anything_to(invoke: Any, fake_model: FakeRanks) -> None:
    result = invoke("generate", "--raw", "--enable-thinking", "Hi")
    assert result.exit_code == 2
    assert "leave out --raw" in " ".join(result.stderr.replace("│", " ").split())
