"""ChatOptions: what a chat template is given besides the messages. Imports nothing heavy: the command reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from interlace.engine.values import shown
from interlace.errors import RequestError


class ChatOptions(TypedDict, total=False):
    """What a chat template is given besides the messages: the keyword arguments of `chat` and `stream`."""

    tools: Sequence[Mapping[str, Any]] | None  # what the model may call, as JSON schemas
    documents: Sequence[Mapping[str, Any]] | None
    chat_template: str | None  # in the place of the model's: Jinja, or the name of one of its several
    chat_template_kwargs: Mapping[str, Any] | None  # more variables, such as enable_thinking
    add_generation_prompt: bool  # True, unless the last message is continued
    continue_final_message: bool  # the model goes on with the last message


def template_arguments(chat: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `apply_chat_template` that these ChatOptions come to. Raises RequestError."""
    known = list(ChatOptions.__annotations__)
    for name in chat:
        if name not in known:
            raise RequestError(
                f"unknown argument {name!r}: expected one of {', '.join(known)}; the template's own variables "
                f"go into chat_template_kwargs"
            )
    variables = chat.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping):
        raise RequestError(f"chat_template_kwargs={shown(variables)}: expected a mapping of names to values")
    arguments: dict[str, Any] = {"add_generation_prompt": not chat.get("continue_final_message", False)}
    arguments |= {name: value for name, value in chat.items() if name != "chat_template_kwargs"}
    for name, value in arguments.items():
        if name in ("add_generation_prompt", "continue_final_message") and not isinstance(value, bool):
            raise RequestError(f"{name}={shown(value)}: expected True or False")
    for name in variables:
        if not isinstance(name, str) or name in (*known, "messages", "self"):
            raise RequestError(f"chat_template_kwargs has {shown(name)}: expected a template's own variables")
    return {**variables, **arguments}
