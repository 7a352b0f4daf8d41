"""The options that `generate` and `chat` share, each declared once.

Their meaning and their checks are those of SamplingParams and EngineConfig; only defaults that suit a person at a
terminal differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from interlace.engine.config import EngineConfig
from interlace.engine.sampling_params import SamplingParams

DEFAULT_MODEL = "smollm2"


def _option(kind: Any, default: Any, panel: str, *names: str, help: str, metavar: str | None = None) -> Any:
    option = typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)
    return Annotated[kind, option], default


SAMPLING: dict[str, Any] = {
    "max_tokens": _option(int, 256, "Sampling", help="Tokens to generate at most."),
    "temperature": _option(float, 0.7, "Sampling", help="0 is greedy."),
    "top_k": _option(int, -1, "Sampling", help="Sample from the K likeliest tokens; -1: off."),
    "top_p": _option(float, 1.0, "Sampling", help="Sample from the likeliest tokens that make up P."),
    "min_p": _option(float, 0.0, "Sampling", help="Drop tokens less likely than P times the likeliest."),
    "repetition_penalty": _option(float, 1.0, "Sampling", help="Over prompt and output; 1 is none."),
    "presence_penalty": _option(float, 0.0, "Sampling", help="Over output, once per token."),
    "frequency_penalty": _option(float, 0.0, "Sampling", help="Over output, per occurrence."),
    "seed": _option(int | None, None, "Sampling", help="Same seed, same tokens; absent: derived."),
    "stop": _option(list[str] | None, None, "Sampling", help="End before this text; may be repeated."),
    "logprobs": _option(int | None, None, "Sampling", help="Report the N likeliest tokens (with --json)."),
    "ignore_eos": _option(bool, False, "Sampling", "--ignore-eos", help="Go on after the end of the text."),
}

ENGINE: dict[str, Any] = {
    "model": _option(
        str, DEFAULT_MODEL, "Engine", "--model", "-m", help="An alias, a directory, a .gguf file or a hub id."
    ),
    "tp": _option(int, 1, "Engine", help="Ranks to split the model over."),
    "communicator": _option(
        str, "auto", "Engine", help="What joins the ranks.", metavar="auto|shm|thread|torch|null"
    ),
    "dtype": _option(str, "auto", "Engine", help="Of weights and KV cache.", metavar="auto|float32|bfloat16"),
    "threads": _option(int | None, None, "Engine", help="Per rank; absent: the cores, shared out."),
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
        str, "lanes", "Engine", help="sequential: one step after the other.", metavar="lanes|sequential"
    ),
    "kernels": _option(
        str, "auto", "Engine", help="Arithmetic: native code or torch.", metavar="auto|native|reference"
    ),
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(..., sampling: SamplingParams, engine: EngineConfig)` as a command that takes every option instead.

    The two objects are made, and so checked, before `command` is called.
    """

    def run(**values: Any) -> None:
        sampling = SamplingParams(**{name: values.pop(name) for name in SAMPLING})
        engine = EngineConfig(**{name: values.pop(name) for name in ENGINE})
        command(**values, sampling=sampling, engine=engine)

    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.name not in ("sampling", "engine")]
    for name, (annotation, default) in (SAMPLING | ENGINE).items():
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        )
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
