"""Prompts as users give them (text, token ids, conversations and the options of their template), made into token ids.

Imports nothing heavy: the command reads ChatOptions before it loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from interlace.engine.protocols import Message, TokenizerLike
from interlace.engine.sampling_params import SamplingParams
from interlace.engine.values import shown
from interlace.errors import RequestError, SamplingError

Conversation = Sequence[Message]
Prompt = str | Sequence[int]


class TokenisedPrompt(NamedTuple):
    text: str | None  # None when token ids were given
    token_ids: Sequence[int]


class ChatOptions(TypedDict, total=False):
    """The arguments of a chat template besides the messages: keyword arguments of `chat` and `stream`."""

    tools: Sequence[Mapping[str, Any]] | None  # functions that the model may call, as JSON schemas
    documents: Sequence[Mapping[str, Any]] | None
    chat_template: str | None  # in the place of the model's: Jinja, or the name of one of its several
    chat_template_kwargs: Mapping[str, Any] | None  # more variables, such as enable_thinking
    add_generation_prompt: bool  # True, unless the last message is continued
    continue_final_message: bool  # the model goes on with the last message


def tokenise(tokenizer: TokenizerLike, prompt: Any, chat: Mapping[str, Any] | None = None) -> TokenisedPrompt:
    """A text, a list of token ids, or a conversation (a list of messages; `chat` has ChatOptions), as token ids."""
    options = template_arguments(chat or {})
    if is_conversation(prompt):
        token_ids = tokenizer.apply_chat_template(prompt, **options)
        return TokenisedPrompt(tokenizer.decode(token_ids, skip_special=False), token_ids)
    if chat:
        raise RequestError(
            f"got {', '.join(chat)} with a prompt of type {type(prompt).__name__}: expected a conversation, "
            f"for only those go through the chat template"
        )
    if isinstance(prompt, str):
        return TokenisedPrompt(prompt, tokenizer.encode(prompt))
    if (given := _as_list(prompt)) is not None:
        return TokenisedPrompt(None, given)
    raise RequestError(
        f"got a prompt of type {type(prompt).__name__}: expected a string, a list of token ids (one "
        f"prompt of ids among many is itself a list: [[1, 2]]), or a list of messages such as "
        f"{{'role': 'user', 'content': '...'}}"
    )


def is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence)
        and len(prompt) > 0
        and all(isinstance(message, Mapping) for message in prompt)
    )


def as_prompts(prompts: Any) -> list[Any]:
    """One text, or many texts or lists of token ids, as a list."""
    if isinstance(prompts, str):
        return [prompts]
    if (each := _as_list(prompts)) is not None:
        return each
    raise RequestError(
        f"got prompts of type {type(prompts).__name__}: expected a string or a list of prompts"
    )


def _as_list(value: Any) -> list[Any] | None:
    """A list, a tuple, an array or a tensor as a list; None for anything else."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    tolist = getattr(value, "tolist", None)
    items = tolist() if callable(tolist) and not isinstance(value, (type, memoryview)) else None
    return items if isinstance(items, list) else None


def as_conversations(messages: Any) -> list[Conversation]:
    """One conversation, or many, as a list."""
    if is_conversation(messages):
        return [messages]
    if isinstance(messages, Sequence) and all(is_conversation(item) for item in messages):
        return list(messages)
    raise RequestError(
        "expected a conversation (a list of messages such as {'role': 'user', 'content': '...'}) "
        f"or a list of them, got {shown(messages)}"
    )


def one_for_each(params: Any, num_prompts: int) -> list[SamplingParams]:
    """The parameters of each prompt: the same for all, or one each."""
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    each = list(params) if isinstance(params, Sequence) else [params]
    for item in each:
        if not isinstance(item, SamplingParams):
            raise SamplingError(f"got {shown(item)}: expected SamplingParams, or a list of them")
    if len(each) != num_prompts:
        raise SamplingError(
            f"got {len(each)} SamplingParams for {num_prompts} prompts: expected one, or one each"
        )
    return each


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
