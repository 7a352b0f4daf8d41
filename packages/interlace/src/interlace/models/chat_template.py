"""Chat templates: the Jinja program in a model's files that turns messages into a prompt, run in a sandbox.

The environment is the one templates are written for, that of transformers: trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, a `tojson` that leaves HTML alone, and `{% generation %}` blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from interlace.errors import TokenizerError
from interlace.models import messages as forms
from interlace.models.messages import Message, PlainMessage, plain_messages, plain_value, refuse

_OWN_NAMES = ("messages", "add_generation_prompt")
_TAG = (
    "INTERLACE-CONTINUES-HERE "  # the space tells whether the template keeps what stands at a message's end
)


class ChatTemplate:
    """A compiled template. Raises TokenizerError when its source is not valid Jinja."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self._special_tokens = source, dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # Jinja's own, or Python's, of the code that Jinja makes: a stray `break`
            raise TokenizerError(f"the chat template is not valid Jinja: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        continue_final_message: bool = False,
    ) -> str:
        """The prompt for `messages`. Raises TokenizerError with the template's own words when it refuses them.

        `continue_final_message` ends the prompt inside the last message, for the model to go on with.
        """
        plain = plain_messages(messages)
        context = {**self._special_tokens, "tools": None, "documents": None, **_variables(variables)}
        if not continue_final_message:
            return self._render_fitting(plain, {**context, "add_generation_prompt": add_generation_prompt})
        if add_generation_prompt:
            refuse("continue_final_message and add_generation_prompt exclude each other: leave one out")
        text, tagged = _tagged(plain)
        rendered = self._render_fitting(tagged, {**context, "add_generation_prompt": False})
        return _cut_at_tag(rendered, text)

    def _render_fitting(self, messages: list[PlainMessage], context: Mapping[str, Any]) -> str:
        """Renders what may be said in two ways as the template takes it."""
        error: TokenizerError | None = None
        for form in _forms(messages):
            try:
                marked = [forms.marked(message, index) for index, message in enumerate(form)]
                rendered = self._render(marked, context)
            except TokenizerError as failure:
                error = failure
                continue
            if forms.strings_quoted_twice(form, rendered):
                form = [forms.with_objects(message) for message in form]
            fitting = [
                forms.joined(message, f"message {index}")
                if forms.is_structured(message) and not forms.is_taken(message, index, rendered)
                else message
                for index, message in enumerate(form)
            ]
            return rendered if fitting == marked else self._render(fitting, context)
        raise error or AssertionError("there is always one form")

    def _render(self, messages: list[PlainMessage], context: Mapping[str, Any]) -> str:
        try:
            return self._template.render(messages=messages, **context)
        except (
            Exception
        ) as error:  # whatever a template does wrong, it is the template's or the messages' fault
            raise TokenizerError(
                f"the model's chat template cannot render these messages: {error}"
            ) from error


def _forms(messages: list[PlainMessage]) -> Iterator[list[PlainMessage]]:
    """The messages as they are, and in each other way in which they can be said; the plainest last."""
    yield messages
    objects = [forms.with_objects(message) for message in messages]
    if objects != messages:
        yield objects
    if any(map(forms.is_structured, messages)):
        joined = [forms.joined(message, f"message {index}") for index, message in enumerate(messages)]
        yield joined
        if objects != messages:
            yield [forms.with_objects(message) for message in joined]


def _variables(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables that a template sees besides the messages."""
    for name in given:
        if not isinstance(name, str) or name in _OWN_NAMES:
            refuse(f"got a template variable {name!r}: that name is not free; give it another")
    for name in ("tools", "documents"):
        items = given.get(name)
        is_list = isinstance(items, list | tuple) and all(isinstance(item, Mapping) for item in items)
        if items is not None and not is_list:
            refuse(f"got {name} of type {type(items).__name__}: expected a list of mappings (JSON objects)")
    return {name: plain_value(value, f"template variable {name!r}") for name, value in given.items()}


def _tagged(messages: list[PlainMessage]) -> tuple[str, list[PlainMessage]]:
    """The text that is to be continued, and the messages with a tag at its end."""
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, str):
        return content, [*messages[:-1], {**last, "content": content + _TAG}]
    parts = content if isinstance(content, list) else []
    texts = [index for index, part in enumerate(parts) if isinstance(part.get("text"), str)]
    if not texts:
        refuse("continue_final_message: the last message has no text to go on with")
    index = texts[-1]
    text = parts[index]["text"]
    tagged = [*parts[:index], {**parts[index], "text": text + _TAG}, *parts[index + 1 :]]
    return text, [*messages[:-1], {**last, "content": tagged}]


def _cut_at_tag(rendered: str, text: str) -> str:
    """Cuts the text that is continued at its end, where the template strips the end of a message."""
    at = rendered.rfind(_TAG.strip())
    if at < 0 or text.strip() not in rendered:
        refuse(
            "continue_final_message: the chat template leaves out the last message, or a part of it; "
            "it cannot be continued"
        )
    return rendered[:at] if rendered.startswith(_TAG, at) else rendered[:at].rstrip()


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what training learns from; here it is a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own spelling

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
