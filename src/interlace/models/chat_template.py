"""Chat templates: the Jinja program in a model's files that turns messages into a prompt, run in a sandbox.

The environment is the one templates are written for, that of transformers: trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, a `tojson` that leaves HTML alone, and transparent `{% generation %}` blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from interlace.errors import TokenizerError

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. Raises TokenizerError when its source is not valid Jinja."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self._special_tokens = source, dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TokenizerError(f"the model's chat template is not valid Jinja: {error}") from error

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        """The prompt for `messages`. Raises TokenizerError with the template's own words when it refuses them."""
        _check_messages(messages)
        context = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **context
            )
        except (
            Exception
        ) as error:  # whatever a template does wrong, it is the template's or the messages' fault
            raise TokenizerError(
                f"the model's chat template cannot render these messages: {error}"
            ) from error


def _check_messages(messages: Sequence[Message]) -> None:
    if isinstance(messages, str | Mapping) or not messages:
        raise TokenizerError(f"a chat is a list of at least one message, got {messages!r}")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TokenizerError(
                f'each message is a mapping like {{"role": "user", "content": "..."}}, got {message!r}'
            )


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what training learns from; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own spelling

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
