"""Messages as callers give them, made into what chat templates are written for: dicts, lists, strings and numbers.

As in transformers, a key whose value is None is left out, for templates test whether a key is there, and reasoning is
found under each of its three names. Text in parts stays in parts where the template takes parts, and is joined where
it takes strings only (transformers shows Python's own spelling of the list then). Anything but text is refused: these
models read nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from interlace.errors import TokenizerError

Message = Mapping[str, Any]
PlainMessage = dict[str, Any]

_REASONING = ("reasoning_content", "thinking", "reasoning")  # the first of them is what most templates read
_TEXT_KINDS = ("text", "input_text", "output_text")
_OTHER_MEDIA = ("image", "audio", "video", "file")
_MARK = "interlace-mark-{}-"  # a key that only a template which spells whole objects out shows


def refuse(message: str) -> NoReturn:
    raise TokenizerError(message)


def plain_messages(messages: Any) -> list[PlainMessage]:
    """Copies of `messages`, checked. Raises TokenizerError for what is no conversation, or not text alone."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        refuse(f"a chat is a list of at least one message, got {_shown(messages)}")
    return [_plain_message(message, f"message {index}") for index, message in enumerate(messages)]


def _plain_message(message: Any, name: str) -> PlainMessage:
    plain = plain_value(message, name)
    if not isinstance(plain, dict) or not isinstance(plain.get("role"), str):
        refuse(
            f'each message is a mapping like {{"role": "user", "content": "..."}}, got {_shown(message)} as {name}'
        )
    kept = {key: value for key, value in plain.items() if value is not None}
    if "content" in kept:
        kept["content"] = _content(kept["content"], name)
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _content(content: Any, name: str) -> Any:
    """A string, an object (what a tool gave), or parts."""
    if isinstance(content, str | dict):
        return content
    if content == []:
        return ""  # no parts say nothing, also where a template takes strings only
    if not isinstance(content, list):
        refuse(f"{name}: got content {_shown(content)}; expected a string, a list of text parts, or null")
    return [_part(part, name) for part in content]


def _part(part: Any, name: str) -> PlainMessage:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        refuse(f'{name}: got a part {_shown(part)}; expected {{"type": "text", "text": "..."}}')
    kind = part.get("type", "text")
    if not isinstance(kind, str) or any(medium in kind for medium in _OTHER_MEDIA):
        refuse(f"{name} has a part of type {_shown(kind)}; this model reads text alone: leave it out")
    if kind in _TEXT_KINDS and not isinstance(part.get("text"), str):
        refuse(f"{name} has a text part without text: got {_shown(part)}")
    return part


def plain_value(value: Any, name: str) -> Any:
    """`value` in Python's own JSON types, copied. Templates come from elsewhere: they see no object with methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # an enum's member, say
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain_value(key, name): plain_value(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item, name) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain_value(getattr(value, item.name), name) for item in dataclasses.fields(value)}
    for method in ("model_dump", "item"):  # pydantic's objects, NumPy's scalars
        convert = getattr(value, method, None)
        if callable(convert) and not getattr(value, "shape", ()):
            return plain_value(convert(), name)
    refuse(f"{name} holds a {type(value).__name__}; expected text, numbers, lists and mappings alone")


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.200}"
    except Exception:
        return f"<{type(value).__name__}>"


# --- what may be said in two ways


def is_structured(message: PlainMessage) -> bool:
    return isinstance(message.get("content"), list | dict)


def joined(message: PlainMessage, name: str) -> PlainMessage:
    """`message` with its content as one string: parts on lines of their own, an object as JSON."""
    content = message.get("content")
    if isinstance(content, dict):
        return {**message, "content": json.dumps(content, ensure_ascii=False)}
    if not isinstance(content, list):
        return message
    for part in content:
        if part.get("type", "text") not in _TEXT_KINDS:
            refuse(
                f"{name} has a part of type {_shown(part['type'])}, and this model's template takes text alone"
            )
    return {**message, "content": "\n".join(part["text"] for part in content)}


def marked(message: PlainMessage, index: int) -> PlainMessage:
    """`message` with a key in its content's objects that shows where a template spells them out."""
    content, key = message.get("content"), _MARK.format(index)
    if isinstance(content, dict):
        return {**message, "content": {**content, key: 1}}
    if isinstance(content, list):
        return {**message, "content": [{**part, key: 1} for part in content]}
    return message


def is_taken(message: PlainMessage, index: int, rendered: str) -> bool:
    """Whether the template that made `rendered` of the marked message takes its content as it is."""
    content, key = message["content"], _MARK.format(index)
    if isinstance(content, dict):
        return f"'{key}'" not in rendered  # JSON is what an object is there for; Python's spelling is not
    shown = all(part["text"].strip() in rendered for part in content if isinstance(part.get("text"), str))
    return shown and key not in rendered


def with_objects(message: PlainMessage) -> PlainMessage:
    """`message` with the arguments of its tool calls as objects, where they came as a string of JSON."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    changed = {**function, "arguments": arguments} if isinstance(arguments, dict) else function
    return {**call, "function": changed} if "function" in call else changed


def strings_quoted_twice(messages: Sequence[PlainMessage], rendered: str) -> bool:
    """Whether some tool call's arguments, a string of JSON, came out as JSON of that string."""
    calls = [
        call for message in messages for call in message.get("tool_calls") or [] if isinstance(call, dict)
    ]
    functions = [call.get("function", call) for call in calls]
    given = [function.get("arguments") for function in functions if isinstance(function, dict)]
    quoted = [json.dumps(text, ensure_ascii=False) for text in given if isinstance(text, str) and '"' in text]
    return any(text in rendered for text in quoted)
