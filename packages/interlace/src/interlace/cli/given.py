"""Options of a request as they were typed: sampling, and arguments of the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from interlace.engine.prompts import ChatOptions
from interlace.engine.sampling_params import SamplingParams

SAMPLING_DEFAULTS = {"max_tokens": 256, "temperature": 0.7}  # for a person at a terminal


@dataclass(frozen=True)
class GivenSampling:
    """The sampling options that were typed, by the names of SamplingParams, and checked as those are."""

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        SamplingParams(**self.values)

    def over(self, model_defaults: Mapping[str, Any]) -> SamplingParams:
        """Returns each option as typed, else as the model's files recommend, else as it suits a person."""
        return SamplingParams(**{**SAMPLING_DEFAULTS, **model_defaults, **self.values})


def chat_options(
    chat_template: Path | None, tools: Path | None, enable_thinking: bool | None, template_kwargs: str | None
) -> ChatOptions:
    """Returns the options that were typed, as LLM.stream takes them. Raises a usage error for a bad file or value."""
    given: ChatOptions = {}
    if chat_template is not None:
        given["chat_template"] = _read(chat_template, "--chat-template")
    if tools is not None:
        given["tools"] = _tools(_json(_read(tools, "--tools"), "--tools", str(tools)))
    variables = (
        {} if template_kwargs is None else _json(template_kwargs, "--template-kwargs", template_kwargs)
    )
    if not isinstance(variables, dict):
        raise typer.BadParameter(
            f'got {template_kwargs}: expected a JSON object such as {{"enable_thinking": false}}',
            param_hint="--template-kwargs",
        )
    if enable_thinking is not None:
        variables = {**variables, "enable_thinking": enable_thinking}
    if variables:
        given["chat_template_kwargs"] = variables
    return given


def _tools(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise typer.BadParameter(
            'expected a JSON list of tools, such as [{"type": "function", "function": {...}}]',
            param_hint="--tools",
        )
    return value


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}", param_hint=option) from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{path} is not UTF-8 text", param_hint=option) from error


def _json(text: str, option: str, source: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{source} is not JSON: {error}", param_hint=option) from error
