from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from interlace import SamplingParams
from interlace.errors import SamplingError

NAN, INF = math.nan, math.inf

BAD: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, "9", True],
    "temperature": [-0.1, NAN, INF, "hot", None, True],
    "top_k": [-2, 2.5, "5", None, False],
    "top_p": [0, 0.0, -0.1, 1.1, NAN, "0.5", None],
    "min_p": [-0.1, 1.1, NAN, None],
    "repetition_penalty": [0, -1.0, NAN, INF, "1"],
    "presence_penalty": [-2.1, 2.1, NAN, None],
    "frequency_penalty": [-2.1, 2.1, NAN, None],
    "seed": [-1, 2**64, 1.0, "7", True],
    "stop": ["", [""], ["a", 3], 5, b"bytes"],
    "stop_token_ids": [[-1], ["a"], 7, [1.0], [True], "7"],
    "ignore_eos": [1, "yes", None],
    "logprobs": [-1, 1.0, True],
    "skip_special_tokens": [0, None],
    "cache_salt": ["", "x" * 1025, 3, b"salt", ["a"]],
    # What float32 or the steps that all share could not bear, and what only looks like a number.
    "n": [1],
    "max_new_tokens": [5],
    "logit_bias": [{1: 2.0}],
    "no_such_thing": [None],
}
BAD["repetition_penalty"] += [1e-38, 1e38, 0.001, 10**400, np.float32(np.nan), np.bool_(True), [1.0], 1j]
BAD["temperature"] += [10**400, 1e39, np.array([1.0]), Decimal("0.5")]
BAD["top_p"] += [np.float64(1.5), -(10**400)]
BAD["seed"] += [10**5000, np.float64(3), np.int64(-1)]
BAD["max_tokens"] += [np.bool_(True), -(10**5000), 1e3]
BAD["logprobs"] += [10**9, 257]
BAD["stop"] += [itertools.repeat("a"), ["a"] * 65, "x" * 1025, "a\ud800", [["a"]], [b"a"], [None]]
BAD["stop_token_ids"] += [itertools.count(), [np.float32(1)], [-(10**5000)], [None], {"a": 1}]


def number_of(value: Any) -> str:
    return (
        f"<{type(value).__name__}>"  # pytest would spell an integer of 5,000 digits out, which Python refuses
    )


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=number_of
)
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: Any) -> None:
    with pytest.raises(SamplingError, match=rf"^{name}=.*: expected .*; .+"):
        SamplingParams(**{name: value})


def test_the_edges_are_allowed() -> None:
    SamplingParams(max_tokens=None, temperature=0, top_k=0, top_p=1, min_p=1, seed=0, logprobs=0)
    SamplingParams(presence_penalty=-2, frequency_penalty=2, seed=2**64 - 1, top_p=1e-9, stop=[])


def test_stops_are_kept_as_tuples() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[3, 4])
    assert (params.stop_strings, params.stop_ids) == (("END",), (3, 4))
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert hash(params) == hash(SamplingParams(stop=["END"], stop_token_ids=(3, 4)))


def test_numbers_of_any_kind_are_kept_as_python_s_own() -> None:
    params = SamplingParams(
        max_tokens=np.int32(5),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_p=Fraction(1, 2),  # type: ignore[arg-type]
        top_k=np.uint8(3),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        stop_token_ids=np.array([7, 8]),  # type: ignore[arg-type]
    )
    kinds = [type(value) for value in (params.max_tokens, params.temperature, params.top_p, params.top_k)]
    assert kinds == [int, float, float, int]
    assert (params.temperature, params.seed, params.stop_ids) == (0.5, 2**64 - 1, (7, 8))


def test_a_foreign_name_says_what_it_is_called_here() -> None:
    with pytest.raises(SamplingError, match=r"max_new_tokens=5: .*; it is called max_tokens"):
        SamplingParams(max_new_tokens=5)  # type: ignore[call-arg]
    with pytest.raises(SamplingError, match="expected at most 15"):
        SamplingParams(*range(16))  # type: ignore[call-arg, arg-type]


def test_they_can_be_copied_with_a_change_and_pickled() -> None:
    params = SamplingParams(stop=["END"], temperature=0.5)
    assert pickle.loads(pickle.dumps(params)) == params
    assert replace(params, seed=3) == SamplingParams(stop="END", temperature=0.5, seed=3)
    with pytest.raises(SamplingError, match="top_q"):
        replace(params, top_q=3)  # type: ignore[call-arg]
