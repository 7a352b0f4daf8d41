from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from interlace.cli.chat import Chat
from interlace.engine.chunk import StreamChunk
from interlace.engine.llm import LLM
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import CacheTooSmall, PromptTooLong, RankFailed, RequestError, TokenizerError
from support.engine_fakes import FakeRanks

QUICK = ("chat", "--temperature", "0", "--max-tokens", "8", "--ignore-eos")


@dataclass
class ScriptedModel:
    """Answers every turn with the same pieces; an exception among them is raised there."""

    pieces: tuple[str | BaseException, ...]

    def stream(self, messages: Any, params: SamplingParams) -> Iterator[StreamChunk]:
        self.seen = list(messages)
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield StreamChunk("request-0", piece)


def chat_with(*pieces: str | BaseException, system: str | None = None) -> Chat:
    model: Any = ScriptedModel(pieces)
    return Chat(model, SamplingParams(), system)


def test_a_scripted_conversation_ends_with_its_input(invoke: Any, fake_model: FakeRanks) -> None:
    result = invoke(*QUICK, input="Hello\nAnd again\n")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert ">" not in result.stdout.splitlines()[0][:1]  # no prompt is printed when nobody types
    assert fake_model.closed


def test_quit_ends_before_the_rest(invoke: Any, fake_model: FakeRanks) -> None:
    assert invoke(*QUICK, input="/quit\nHello\n").stdout == ""


def test_help_lists_the_commands(invoke: Any, fake_model: FakeRanks) -> None:
    found = invoke(*QUICK, input="/help\n").stdout
    for command in ("/help", "/history", "/system", "/reset", "/quit"):
        assert command in found


def test_an_unknown_command_goes_to_standard_error(invoke: Any, fake_model: FakeRanks) -> None:
    result = invoke(*QUICK, input="/nonsense\n")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "/nonsense" in result.stderr


def test_every_turn_sees_the_turns_before_it() -> None:
    chat = chat_with("Good ", "day.")
    chat.take("Hello")
    chat.take("And?")
    assert chat.messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Good day."},
    ]


def test_reset_forgets_all_but_the_system_message() -> None:
    chat = chat_with("Yes.", system="Be brief.")
    chat.take("Hello")
    chat.take("/reset")
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_system_starts_anew(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with("Yes.")
    chat.take("Hello")
    chat.take("/system Answer in rhyme.")
    assert chat.messages == [{"role": "system", "content": "Answer in rhyme."}]
    capsys.readouterr()
    chat.take("/system")
    assert capsys.readouterr().out == "Answer in rhyme.\n"


def test_history_prints_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with("Yes.")
    chat.take("Hello")
    capsys.readouterr()
    chat.take("/history")
    assert capsys.readouterr().out == "user: Hello\nassistant: Yes.\n"


def test_ctrl_c_stops_the_reply_and_keeps_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with("Well, ", KeyboardInterrupt())
    chat.take("Hello")
    assert chat.messages[-1] == {"role": "assistant", "content": "Well, "}
    assert capsys.readouterr().out == "Well,  (stopped)\n"


def test_ctrl_c_at_the_prompt_drops_the_line() -> None:
    answers = iter([KeyboardInterrupt(), "Hello", EOFError()])

    def next_line() -> str:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    chat = chat_with("Yes.")
    chat.run(next_line)
    assert len(chat.messages) == 2


def test_a_turn_that_cannot_be_served_leaves_the_conversation_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = chat_with(PromptTooLong("the prompt has 300 tokens"))
    chat.take("Hello")
    assert chat.messages == []
    error, advice = capsys.readouterr().err.splitlines()
    assert error == "error: the prompt has 300 tokens"
    assert "/reset forgets it" in advice


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (TokenizerError("System role not supported"), "/system - takes the system message out"),
        (CacheTooSmall("the cache holds 16 blocks"), "/reset forgets it"),
        (RequestError("it cannot be served"), "say it otherwise, or /reset"),
    ],
)
def test_a_refused_turn_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], refusal: Exception, advice: str
) -> None:
    chat = chat_with(refusal, system="Be brief.")
    chat.take("Hello")
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert advice in capsys.readouterr().err


def test_a_system_message_can_be_taken_out() -> None:
    chat = chat_with("Yes.", system="Be brief.")
    chat.take("/system -")
    assert (chat.system, chat.messages) == (None, [])


def test_a_line_that_is_no_text_costs_that_line(invoke: Any, fake_model: FakeRanks) -> None:
    result = invoke(*QUICK, input=b"\xff\xfe\n/help\n")
    assert result.exit_code == 0
    assert "byte 0xff" in result.stderr
    assert "/history" in result.stdout


def test_a_failed_rank_ends_the_session() -> None:
    with pytest.raises(RankFailed):
        chat_with(RankFailed("rank 1 was killed", 1)).take("Hello")


def test_a_conversation_that_outgrows_the_context_can_go_on_after_reset(
    invoke: Any, fake_model: FakeRanks
) -> None:
    result = invoke(*QUICK, input=f"{'x' * 200}\n/reset\nHello\n")
    assert result.exit_code == 0
    assert result.stderr.startswith("error: ")
    assert result.stdout.startswith("(the conversation starts anew)\n")
    assert len(result.stdout) > len("(the conversation starts anew)\n")


def test_every_turn_goes_through_the_template_that_was_typed(
    invoke: Any, fake_model: FakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(LLM, "stream", lambda self, messages, params, **given: iter(seen.append(given) or ()))
    assert invoke(*QUICK, "--enable-thinking", input="Hello\nAgain\n").exit_code == 0
    assert seen == [{"chat_template_kwargs": {"enable_thinking": True}}] * 2
