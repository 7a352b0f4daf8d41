"""The report of `interlace generate` on an answer: one JSON object, or a small table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from interlace.cli.console import megabytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlace.cli.session import Reply
    from interlace.engine.config import EngineConfig
    from interlace.engine.output import CompletionOutput
    from interlace.engine.sampling_params import SamplingParams


CHOOSING = (  # how a token is chosen; the model's files may set these
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
DESCRIBED = ("communicator", "device", "dtype", "weights", "kernels", "threads_per_rank")  # of the ranks
MEASURED = ("memory_per_rank_bytes", "weights_per_rank_bytes", "weights_tier_per_rank_bytes")


def json_object(
    reply: Reply, engine: EngineConfig, sampling: SamplingParams, ranks: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns all facts of a reply. `seed` is the request's own, or null where it was derived from the engine's."""
    output, completion = reply.output, reply.output.outputs[0]
    value = {
        "model": engine.model,
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "token_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "seed": sampling.seed,
        "sampling": {name: getattr(sampling, name) for name in CHOOSING},
        "tp": len(ranks["ranks"]),
        **{name: ranks[name] for name in DESCRIBED},
        "num_kv_blocks": ranks["num_kv_blocks"],
        **{name: ranks[name] for name in MEASURED},
        "metrics": asdict(output.metrics) | {"command_to_first_token_s": reply.command_to_first_token_s},
    }
    if completion.logprobs is not None:
        value["logprobs"] = _logprobs(completion)
    return value


def _logprobs(completion: CompletionOutput) -> list[dict[str, Any]]:
    """Returns an entry per generated token: its own logprob, and the likeliest tokens, best first."""
    return [
        {
            "token_id": token_id,
            **asdict(at_token[token_id]),
            "top": [{"token_id": other, **asdict(logprob)} for other, logprob in at_token.items()],
        }
        for token_id, at_token in zip(completion.token_ids, completion.logprobs or [], strict=True)
    ]


def table_of(reply: Reply, engine: EngineConfig, ranks: Mapping[str, Any]) -> str:
    """Returns two columns: names of figures, and their values."""
    return "\n".join(f"{name:<22} {value}" for name, value in _rows(reply, engine, ranks))


def _rows(reply: Reply, engine: EngineConfig, ranks: Mapping[str, Any]) -> list[tuple[str, str]]:
    metrics = reply.output.metrics
    num_ranks, threads = len(ranks["ranks"]), ranks["threads_per_rank"]
    each = "1 thread each" if threads == 1 else f"{threads} threads each"
    where = each if ranks["device"] == "cpu" else f"on {ranks['device']}"
    return [
        (
            "model",
            f"{engine.model}, {weights_text(ranks['weights'])}{ranks['dtype']}, {ranks['kernels']} kernels",
        ),
        ("ranks", f"{num_ranks}, {where}, communicator {ranks['communicator']}"),
        (
            "prompt",
            f"{metrics.num_prompt_tokens} tokens, {_rate(metrics.prefill_tokens_per_second)} (prefill)",
        ),
        (
            "generated",
            f"{metrics.num_output_tokens} tokens, {_rate(metrics.decode_tokens_per_second)} (decode)",
        ),
        ("time to first token", _first_token(reply)),
        ("peak memory per rank", ", ".join(megabytes(size) for size in ranks["memory_per_rank_bytes"])),
        *_weights_rows(ranks),
    ]


def _weights_rows(ranks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where weights are, if not all of them are in local memory."""
    in_tier, local = ranks["weights_tier_per_rank_bytes"], ranks["weights_per_rank_bytes"]
    if not any(in_tier):
        return []
    each = (
        f"{megabytes(kept)} in a tier, {megabytes(own)} local"
        for kept, own in zip(in_tier, local, strict=True)
    )
    return [("weights per rank", "; ".join(each))]


def weights_text(name: str) -> str:
    """The formats of weights in blocks, of a name such as "stored+q4_1+q8_0"; dense ones are of the dtype."""
    if name == "none":
        return ""
    formats = [part for part in name.split("+") if part != "stored"]
    return f"weights in {' and '.join(formats)}, "


def _rate(tokens_per_second: float | None) -> str:
    return "too few to time" if tokens_per_second is None else f"{tokens_per_second:,.0f} tokens/s"


def _first_token(reply: Reply) -> str:
    engine_s = reply.output.metrics.time_to_first_token_s
    in_engine = "unknown" if engine_s is None else f"{engine_s:.2f} s"
    if reply.command_to_first_token_s is None:
        return in_engine
    return f"{in_engine}; {reply.command_to_first_token_s:.2f} s from the command, loading included"
