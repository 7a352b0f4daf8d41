"""SamplingParams: how a request's tokens are chosen and when it ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, NoReturn, Self

from interlace.engine.values import as_float, as_int, as_items, shown
from interlace.errors import SamplingError

GREEDY_BELOW = 1e-5  # a temperature under this is greedy: dividing by it would only overflow
SEED_LIMIT = 2**64
PENALTY_LIMIT = 2.0
REPETITION_LIMIT = (
    100.0  # and at least its inverse: logits are float32, and a factor beyond says nothing more
)
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
# What one request may cost each step that all share: these are searched or sorted for every token.
MAX_LOGPROBS = 256
MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 64, 1024
MAX_STOP_TOKEN_IDS = 4096
MAX_SALT_CHARACTERS = 1024

ELSEWHERE = {  # names that other engines have, and what does the same here
    "max_new_tokens": "it is called max_tokens",
    "n": "ask once for each answer, with seeds of their own",
    "best_of": "ask once for each answer, with seeds of their own",
    "typical_p": "use top_p or min_p",
    "repeat_penalty": "it is called repetition_penalty",
    "stop_strings": "it is called stop",
    "do_sample": "temperature=0 is greedy",
}


def _reject(name: str, got: Any, expected: str, advice: str) -> NoReturn:
    raise SamplingError(f"{name}={shown(got)}: expected {expected}; {advice}")


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
    cache_salt: str | None = None  # requests share computed prefixes with those of the same salt alone

    def __new__(cls, *arguments: Any, **values: Any) -> Self:
        """Refuses what is no parameter in the words of the others' errors, before Python does in its own."""
        names = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in names:
                advice = ELSEWHERE.get(name, "leave it out")
                _reject(name, value, f"a parameter that there is: {', '.join(names)}", advice)
        if len(arguments) > len(names):
            raise SamplingError(
                f"got {len(arguments)} values: expected at most {len(names)}; give them by name"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._take_numbers()
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                _reject(name, getattr(self, name), "True or False", "pass a bool")
        self._check_salt("cache_salt")
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _stop_token_ids(self.stop_token_ids))

    def _take_numbers(self) -> None:
        self._take_int("max_tokens", 1, None, "use None to generate up to the context's end", optional=True)
        self._take_int("top_k", -1, None, "use -1 to switch it off")
        self._take_int("seed", 0, SEED_LIMIT - 1, "use None to have one derived", optional=True)
        self._take_int("logprobs", 0, MAX_LOGPROBS, "use None for none", optional=True)
        self._take_float("temperature", 0.0, FLOAT32_MAX, "use 0 for greedy decoding")
        self._take_float("top_p", 0.0, 1.0, "use 1 to switch it off", above_low=True)
        self._take_float("min_p", 0.0, 1.0, "use 0 to switch it off")
        self._take_float("repetition_penalty", 1 / REPETITION_LIMIT, REPETITION_LIMIT, "1 is none")
        self._take_float("presence_penalty", -PENALTY_LIMIT, PENALTY_LIMIT, "use 0 for none")
        self._take_float("frequency_penalty", -PENALTY_LIMIT, PENALTY_LIMIT, "use 0 for none")

    def _take_int(self, name: str, low: int, high: int | None, advice: str, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        number = as_int(value)
        if number is None or number < low or (high is not None and number > high):
            expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
            _reject(name, value, expected, advice)
        self._set(name, number)

    def _take_float(self, name: str, low: float, high: float, advice: str, above_low: bool = False) -> None:
        value = getattr(self, name)
        number = as_float(value)
        if number is None or number < low or (above_low and number == low) or number > high:
            expected = f"a number {'above' if above_low else 'of at least'} {low:g} and at most {high:g}"
            _reject(name, value, expected, advice)
        self._set(name, number)

    def _check_salt(self, name: str) -> None:
        value = getattr(self, name)
        if value is not None and not (isinstance(value, str) and 1 <= len(value) <= MAX_SALT_CHARACTERS):
            expected = f"a string of 1 to {MAX_SALT_CHARACTERS} characters"
            _reject(name, value, expected, "use None to share with all that have none")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

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


def _stop_strings(stop: Any) -> tuple[str, ...]:
    given = (stop,) if isinstance(stop, str) else _items("stop", stop, MAX_STOP_STRINGS, "strings")
    for string in given:
        if not isinstance(string, str) or not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            expected = f"strings of 1 to {MAX_STOP_CHARACTERS} characters"
            _reject("stop", stop, expected, "drop the empty, longer or foreign ones")
        if any("\ud800" <= character <= "\udfff" for character in string):
            _reject("stop", stop, "strings of whole characters", "drop those with lone surrogates")
    return tuple(str.__str__(string) for string in given)


def _stop_token_ids(ids: Any) -> tuple[int, ...]:
    tokens = []
    for item in _items("stop_token_ids", ids, MAX_STOP_TOKEN_IDS, "token ids"):
        token = as_int(item)
        if token is None or token < 0:
            _reject("stop_token_ids", ids, "integers of at least 0", "pass ids of the model's vocabulary")
        tokens.append(token)
    return tuple(tokens)


def _items(name: str, value: Any, limit: int, kind: str) -> tuple[Any, ...]:
    items = () if value is None else as_items(value, limit)
    if items is None:
        _reject(name, value, f"a list of at most {limit} {kind}", "use None for none")
    return items
