"""Prompts as users give them (text, token ids, conversations), made into token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from interlace.engine.chat_options import template_arguments
from interlace.engine.protocols import Message, Tokenizer
from interlace.engine.sampling_params import SamplingParams
from interlace.engine.values import shown
from interlace.errors import RequestError, SamplingError

Conversation = Sequence[Message]
Prompt = str | Sequence[int]


class TokenisedPrompt(NamedTuple):
    text: str | None  # None when token ids were given
    token_ids: Sequence[int]


def tokenise(tokenizer: Tokenizer, prompt: Any, chat: Mapping[str, Any] | None = None) -> TokenisedPrompt:
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
