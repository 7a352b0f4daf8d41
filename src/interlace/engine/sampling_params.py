"""SamplingParams: how a request's tokens are chosen and when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from interlace.errors import SamplingError

GREEDY_BELOW = 1e-5  # a temperature under this is greedy: dividing by it would only overflow
SEED_LIMIT = 2**64
PENALTY_LIMIT = 2.0


def _reject(name: str, got: Any, expected: str, advice: str) -> NoReturn:
    raise SamplingError(f"{name}={got!r}: expected {expected}; {advice}")


@dataclass(frozen=True)
class SamplingParams:
    """Checked when made: a bad value raises SamplingError, whose message says what was expected.

    Filters apply in this order: penalties, temperature, top-k, top-p, min-p. Logprobs are of the raw model.
    """

    max_tokens: int | None = 16  # None: up to the end of the context
    temperature: float = 1.0  # 0 is greedy
    top_k: int = -1  # -1 or 0: off
    top_p: float = 1.0
    min_p: float = 0.0  # relative to the likeliest token
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output only
    frequency_penalty: float = 0.0  # over output only, per occurrence
    seed: int | None = None  # None: derived from the engine's seed and the request's number
    stop: str | Iterable[str] | None = None  # kept as a tuple
    stop_token_ids: Iterable[int] | None = None  # kept as a tuple
    ignore_eos: bool = False
    logprobs: int | None = None  # this many likeliest tokens, and the chosen one; 0: the chosen one alone
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_switches()
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _stop_token_ids(self.stop_token_ids))

    def _check_numbers(self) -> None:
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, None, "use None to generate up to the context's end")
        _check_float("temperature", self.temperature, 0.0, None, "use 0 for greedy decoding")
        _check_int("top_k", self.top_k, -1, None, "use -1 to switch it off")
        _check_float("top_p", self.top_p, 0.0, 1.0, "use 1 to switch it off", above_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0, "use 0 to switch it off")
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, None, "1 is none", above_low=True)
        for name in ("presence_penalty", "frequency_penalty"):
            _check_float(name, getattr(self, name), -PENALTY_LIMIT, PENALTY_LIMIT, "use 0 for none")
        if self.seed is not None:
            _check_int("seed", self.seed, 0, SEED_LIMIT - 1, "use None to have one derived")
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, None, "use None for none")

    def _check_switches(self) -> None:
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                _reject(name, getattr(self, name), "True or False", "pass a bool")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, as the tuple it is kept as."""
        return tuple(self.stop or ())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """`stop_token_ids`, as the tuple it is kept as."""
        return tuple(self.stop_token_ids or ())

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _check_int(name: str, value: Any, low: int, high: int | None, advice: str) -> None:
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        _reject(name, value, expected, advice)
    if value < low or (high is not None and value > high):
        _reject(name, value, expected, advice)


def _check_float(
    name: str, value: Any, low: float, high: float | None, advice: str, above_low: bool = False
) -> None:
    expected = f"a number {'above' if above_low else 'of at least'} {low:g}"
    if high is not None:
        expected += f" and at most {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _reject(name, value, expected, advice)
    if value < low or (above_low and value == low) or (high is not None and value > high):
        _reject(name, value, expected, advice)


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else _as_tuple("stop", stop, "a string or a list of strings")
    for string in strings:
        if not isinstance(string, str) or not string:
            _reject("stop", stop, "strings of at least one character", "drop the empty or foreign ones")
    return strings


def _stop_token_ids(ids: Any) -> tuple[int, ...]:
    tokens = _as_tuple("stop_token_ids", ids, "a list of token ids")
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            _reject("stop_token_ids", ids, "integers of at least 0", "pass ids of the model's vocabulary")
    return tokens


def _as_tuple(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        _reject(name, value, expected, "use None for none")
    return tuple(value)
