"""`interlace chat`: a conversation at the terminal, or scripted through standard input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from emucxl.cli import streams
from interlace.cli import console
from interlace.cli.given import GivenSampling
from interlace.cli.options import with_options
from interlace.engine.config import EngineConfig
from interlace.engine.prompts import ChatOptions
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import CacheTooSmall, InterlaceError, PromptTooLong, RequestError, TokenizerError

if TYPE_CHECKING:
    from interlace.engine.llm import LLM

HELP = """\
/help          these commands
/history       the conversation so far
/system TEXT   give the model instructions and start anew; without TEXT: show them; with -: take them away
/reset         forget the conversation
/quit          end; so does Ctrl-D
Ctrl-C stops a reply and keeps the conversation."""


@with_options
def chat(
    *,
    system: Annotated[
        str | None, typer.Option(help="Instructions for the model, as its system message.")
    ] = None,
    sampling: GivenSampling,
    template: ChatOptions,
    engine: EngineConfig,
) -> None:
    """Talk to a model. Type /help inside for its commands."""
    from interlace.cli.session import open_llm

    told = None if system is None else streams.argument_text(system)  # before a model is loaded in vain

    with open_llm(engine) as llm:
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            with contextlib.suppress(ImportError):  # optional in Python: it makes input() editable
                import readline  # noqa: F401
            print(f"{engine.model} is listening. /help lists the commands, /quit ends.")
        params = sampling.over(llm.sampling_defaults)
        Chat(llm, params, told, template).run(_typed_line if is_terminal else streams.read_line)


class Chat:
    """One conversation: the messages so far, and the commands that a user types."""

    def __init__(
        self,
        llm: LLM,
        sampling: SamplingParams,
        system: str | None = None,
        template: ChatOptions | None = None,
    ) -> None:
        self.llm, self.sampling, self.system = llm, sampling, system
        self.template: ChatOptions = template or {}
        self.messages: list[dict[str, str]] = []
        self.reset()

    def run(self, next_line: Callable[[], str]) -> None:
        """Takes lines until /quit or the end of input (EOFError)."""
        while True:
            try:
                line = next_line().strip()
            except EOFError:
                return
            except KeyboardInterrupt:  # Ctrl-C at the prompt drops the line
                print()
                continue
            except streams.InputError as error:  # that line is lost, and the conversation is not
                console.show_error(error)
                continue
            if line == "/quit":
                return
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """Carries out one line: a command, or something said to the model."""
        command, _, argument = line.partition(" ")
        match command:
            case "/help":
                print(HELP)
            case "/history":
                self._show_history()
            case "/reset":
                self.reset()
                print("(the conversation starts anew)")
            case "/system":
                self._set_system(argument.strip())
            case _ if command.startswith("/"):
                print(f"there is no command {command}; /help lists them", file=sys.stderr)
            case _:
                self.say(line)

    def say(self, text: str) -> None:
        """Takes one turn. A request that cannot be served is reported, and the conversation stays as it was."""
        self.messages.append({"role": "user", "content": text})
        try:
            reply = self._stream_reply()
        except (RequestError, CacheTooSmall, TokenizerError) as error:
            self.messages.pop()
            console.show_error(error)
            print(self._advice(error), file=sys.stderr)
            return
        self.messages.append({"role": "assistant", "content": reply})

    def reset(self) -> None:
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def _stream_reply(self) -> str:
        """Prints the model's turn as it comes. Ctrl-C ends the turn; the conversation keeps the printed text."""
        parts: list[str] = []
        try:
            for chunk in self.llm.stream(self.messages, self.sampling, **self.template):
                parts.append(chunk.text)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" (stopped)")
        sys.stdout.write("\n")
        sys.stdout.flush()
        return "".join(parts)

    def _advice(self, error: InterlaceError) -> str:
        """Returns advice on how to go on after a turn that was refused."""
        if isinstance(error, TokenizerError) and self.system is not None:
            return "(the conversation is as it was; /system - takes the system message out, if that is the cause)"
        if isinstance(error, PromptTooLong | CacheTooSmall):
            return "(the conversation is as it was; /reset forgets it and makes room)"
        return "(the conversation is as it was; say it otherwise, or /reset)"

    def _set_system(self, text: str) -> None:
        if not text:
            print(self.system if self.system is not None else "(nothing)")
            return
        self.system = None if text == "-" else text
        self.reset()
        print(
            "(the model has new instructions; the conversation starts anew)"
            if self.system
            else "(the model has no instructions; the conversation starts anew)"
        )

    def _show_history(self) -> None:
        for message in self.messages:
            print(f"{message['role']}: {message['content']}")


def _typed_line() -> str:
    try:
        return input("> ")
    except UnicodeDecodeError as error:
        raise streams.not_text(error) from None
    except EOFError:
        print()  # Ctrl-D leaves the cursor behind the prompt
        raise
