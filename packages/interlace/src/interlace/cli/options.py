"""The options that `generate` and `chat` share, each declared once.

SamplingParams and EngineConfig give them their meaning and their checks. Some defaults differ, to suit a person at a
terminal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from interlace.cli.given import GivenSampling, chat_options
from interlace.engine.config import EngineConfig

DEFAULT_MODEL = "smollm2"
MADE = ("sampling", "template", "engine")  # parameters of a command that are made from the options


def _option(kind: Any, default: Any, panel: str, *names: str, help: str, metavar: str | None = None) -> Any:
    option = typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)
    return Annotated[kind, option], default


# Absent ones are the model's own (`generation_config`) or, where it has none, those of `given.SAMPLING_DEFAULTS`.
SAMPLING: dict[str, Any] = {
    "max_tokens": _option(int | None, None, "Sampling", help="Tokens to generate at most; absent: 256."),
    "temperature": _option(float | None, None, "Sampling", help="0 is greedy; absent: the model's, or 0.7."),
    "top_k": _option(
        int | None,
        None,
        "Sampling",
        help="Sample from the K likeliest tokens; -1: off; absent: the model's, or off.",
    ),
    "top_p": _option(
        float | None,
        None,
        "Sampling",
        help="Sample from the likeliest tokens that make up P; 1: off; absent: the model's, or off.",
    ),
    "min_p": _option(
        float | None,
        None,
        "Sampling",
        help="Drop tokens less likely than P times the likeliest; 0: off; absent: the model's, or off.",
    ),
    "repetition_penalty": _option(
        float | None,
        None,
        "Sampling",
        help="Penalty on tokens of prompt and output; 1: none; absent: the model's, or none.",
    ),
    "presence_penalty": _option(
        float | None, None, "Sampling", help="Penalty on tokens of the output, once each; 0: none."
    ),
    "frequency_penalty": _option(
        float | None, None, "Sampling", help="Penalty on tokens of the output, per occurrence; 0: none."
    ),
    "seed": _option(int | None, None, "Sampling", help="Same seed, same tokens; absent: one is derived."),
    "stop": _option(list[str] | None, None, "Sampling", help="End before this text; may be repeated."),
    "logprobs": _option(int | None, None, "Sampling", help="Report the N likeliest tokens (with --json)."),
    "ignore_eos": _option(bool, False, "Sampling", "--ignore-eos", help="Go on after the end of the text."),
}

CHAT: dict[str, Any] = {
    "chat_template": _option(
        Path | None,
        None,
        "Chat template",
        help="A Jinja file in the place of the model's template.",
        metavar="FILE",
    ),
    "tools": _option(
        Path | None,
        None,
        "Chat template",
        help="Functions that the model may call: a JSON list of schemas.",
        metavar="FILE.json",
    ),
    "enable_thinking": _option(
        bool | None,
        None,
        "Chat template",
        "--enable-thinking/--no-enable-thinking",
        help="Let the model think first, or not, where its template knows of it.",
    ),
    "template_kwargs": _option(
        str | None,
        None,
        "Chat template",
        help="More variables for the template, as a JSON object.",
        metavar="JSON",
    ),
}

ENGINE: dict[str, Any] = {
    "model": _option(
        str, DEFAULT_MODEL, "Engine", "--model", "-m", help="An alias, a directory, a .gguf file or a hub id."
    ),
    "tp": _option(int, 1, "Engine", help="Ranks to split the model over."),
    "device": _option(
        str,
        "auto",
        "Engine",
        help="Where the ranks compute; auto: on GPUs, if there are any.",
        metavar="auto|cpu|cuda",
    ),
    "communicator": _option(
        str,
        "auto",
        "Engine",
        help="The channel between the ranks.",
        metavar="auto|shm|thread|torch|nccl|symm_mem|null",
    ),
    "dtype": _option(
        str,
        "auto",
        "Engine",
        help="Number format of dense weights, activations and KV cache; float16 on GPUs alone.",
        metavar="auto|float32|bfloat16|float16",
    ),
    "quantize": _option(
        str,
        "auto",
        "Engine",
        help="Hold weights in blocks of small codes. stored: a GGUF file's blocks as they are; int8, int4: these, and "
        "all other matrices made into blocks; fp8: these, and the others in floats of 8 bits, on GPUs; none: dense. "
        "auto: stored, but none where --dtype names a format.",
        metavar="auto|none|stored|int8|int4|fp8",
    ),
    "threads": _option(
        int | None, None, "Engine", help="Threads of each rank; absent: the cores, shared out."
    ),
    "max_model_len": _option(int | None, None, "Engine", help="Longest prompt and output, in tokens."),
    "kv_cache_gb": _option(float | None, None, "Engine", help="KV cache per rank, in 1e9 bytes."),
    "num_kv_blocks": _option(int | None, None, "Engine", help="KV cache in blocks of 16 tokens."),
    "max_num_seqs": _option(int, 64, "Engine", help="Sequences in one forward pass."),
    "link": _option(
        str | None,
        None,
        "Engine",
        help="Model a slower interconnect between the ranks, say 0.25GB/s,5us.",
        metavar="GB/s,us",
    ),
    "weave": _option(
        str,
        "auto",
        "Engine",
        help="Compute one part of a batch while the ranks exchange the other.",
        metavar="auto|always|never",
    ),
    "executor": _option(
        str,
        "lanes",
        "Engine",
        help="lanes: transfers beside compute; sequential: one step after the other.",
        metavar="lanes|sequential",
    ),
    "replay": _option(
        bool,
        True,
        "Engine",
        "--replay/--no-replay",
        help="Make the calls of passes that come again in one: native code, or CUDA graphs.",
    ),
    "prefix_cache": _option(
        bool,
        True,
        "Engine",
        "--prefix-cache/--no-prefix-cache",
        help="Compute prompts that begin alike once.",
    ),
    "record_block_trace": _option(
        Path | None,
        None,
        "Engine",
        help="Record which blocks requests ask for, and when, for `kv-sim`: numbers, no text.",
        metavar="FILE.jsonl",
    ),
    "kv_tiers": _option(
        list[str],
        [],
        "Engine",
        "--kv-tier",
        help="A memory below the KV cache, say cxl:8GB@cxl-direct, numa:1:8GB or dax:/dev/dax0.0; may be repeated, "
        "from the top down.",
        metavar="TIER",
    ),
    "kv_tier_write": _option(
        str,
        "through",
        "Engine",
        help="through: blocks go down when they are full; back: when their memory is needed.",
        metavar="through|back",
    ),
    "kv_tier_policy": _option(
        str, "lru", "Engine", help="Which block leaves a tier that is full.", metavar="lru|tinylfu"
    ),
    "kv_fetch": _option(
        str,
        "auto",
        "Engine",
        help="auto: fetch as much of a prompt as is faster than to compute it; always: all that a tier has.",
        metavar="auto|always",
    ),
    "weights_tier": _option(
        str | None,
        None,
        "Engine",
        help="Keep the layers' weights in a memory below, say cxl:16GB@cxl-direct: two layers are in local memory.",
        metavar="TIER",
    ),
    "generation_config": _option(
        str,
        "auto",
        "Engine",
        help="auto: sample as the model's files recommend, where no option says otherwise.",
        metavar="auto|none",
    ),
    "kernels": _option(
        str, "auto", "Engine", help="Arithmetic: native code or torch.", metavar="auto|native|reference"
    ),
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Returns `command(..., sampling, template, engine)` as a command that takes every option instead.

    `sampling` is a GivenSampling, `template` has ChatOptions, `engine` is an EngineConfig. They are made, and so
    checked, before `command` is called.
    """

    def made(values: dict[str, Any]) -> dict[str, Any]:
        typed = {name: values[name] for name in SAMPLING if values[name] is not None}
        return {
            "sampling": GivenSampling(typed),
            "template": chat_options(**{name: values[name] for name in CHAT}),
            "engine": EngineConfig(**{name: values[name] for name in ENGINE}),
        }

    return _taking(command, SAMPLING | CHAT | ENGINE, made)


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Returns `command(..., engine)` as a command that takes the options of an engine instead, as `with_options`."""
    return _taking(command, ENGINE, lambda values: {"engine": EngineConfig(**values)})


def _taking(
    command: Callable[..., None],
    options: dict[str, Any],
    made: Callable[[dict[str, Any]], dict[str, Any]],
) -> Callable[..., None]:
    """Returns `command` with `options` in the place of what is `made` of their values."""

    def run(**values: Any) -> None:
        given = made({name: values.pop(name) for name in options})
        command(**values, **given)

    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.name not in MADE]
    for name, (annotation, default) in options.items():
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        )
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
