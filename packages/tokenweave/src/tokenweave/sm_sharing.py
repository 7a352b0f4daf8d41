"""SMs that two lanes of a GPU share: while a reduction's CTAs hold some, the products beside it have fewer.

More CTAs end a reduction sooner and take more from what is to hide it (published: 2 to 16 CTAs). So both are measured
for each number of CTAs, and which number a call takes follows from its tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from tokenweave.curves import Curve
from tokenweave.errors import TuneError

CtaRows = tuple[tuple[int, int], ...]
"""Pairs (num_tokens, num_ctas), the tokens rising, as in `tokenweave.kernels.cuda.sharing.CtaTable`: a call takes the
CTAs of the first pair that has at least as many tokens, and those of the last pair if none has."""


@dataclass(frozen=True)
class BesideCtas:
    """Times with `num_ctas` CTAs for a reduction: its own, and of the products on the SMs that are left."""

    num_ctas: int
    reduce: Curve
    projections: Curve
    mlps: tuple[Curve, ...]  # of each of the key's kinds


@dataclass(frozen=True)
class SmSharing:
    """The times that reductions of several numbers of CTAs take, and leave, on a GPU of `num_sms` SMs."""

    num_sms: int
    beside: tuple[BesideCtas, ...]  # by ascending numbers of CTAs
    ctas: CtaRows  # chosen among them

    def __post_init__(self) -> None:
        known = [each.num_ctas for each in self.beside]
        if not known or known[0] < 1 or known[-1] >= self.num_sms or not _rise(known):
            raise TuneError(
                f"got times with {known} CTAs on {self.num_sms} SMs; expected ascending numbers from 1 on, and SMs left"
            )
        if not self.ctas or not _rise([tokens for tokens, _ in self.ctas]):
            raise TuneError(f"got CTAs by tokens {self.ctas}; expected pairs, the tokens rising")
        if unknown := {num_ctas for _, num_ctas in self.ctas} - set(known):
            raise TuneError(f"got calls of {sorted(unknown)} CTAs; expected those with times, {known}")

    def of(self, num_tokens: int) -> BesideCtas:
        """The times with the CTAs that a call of so many tokens takes."""
        at = bisect_left(self.ctas, num_tokens, key=lambda row: row[0])
        num_ctas = self.ctas[min(at, len(self.ctas) - 1)][1]
        return next(each for each in self.beside if each.num_ctas == num_ctas)

    def reduce(self) -> Curve:
        """The time of a reduction with the CTAs that it takes, at every number of tokens that was timed."""
        tokens = sorted({count for each in self.beside for count in each.reduce.tokens})
        return Curve(tuple(tokens), tuple(self.of(count).reduce(count) for count in tokens))

    def slow_down(self, num_ctas: int) -> float:
        """By what a kernel that fills the device takes longer on the SMs that are left."""
        return self.num_sms / (self.num_sms - num_ctas)

    def in_proportion(self, projections: Curve, mlps: tuple[Curve, ...]) -> SmSharing:
        """The same reductions, beside products that take these times alone and lose in proportion to the SMs."""
        beside = (
            BesideCtas(
                each.num_ctas,
                each.reduce,
                projections.times(factor),
                tuple(mlp.times(factor) for mlp in mlps),
            )
            for each in self.beside
            for factor in (self.slow_down(each.num_ctas),)
        )
        return replace(self, beside=tuple(beside))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> SmSharing:
        """Raises TuneError, KeyError, TypeError or ValueError unless `found` is what `dataclasses.asdict` gives."""
        return cls(
            num_sms=int(found["num_sms"]),
            beside=tuple(
                BesideCtas(
                    int(each["num_ctas"]),
                    Curve.from_json(each["reduce"]),
                    Curve.from_json(each["projections"]),
                    tuple(Curve.from_json(mlp) for mlp in each["mlps"]),
                )
                for each in found["beside"]
            ),
            ctas=tuple((int(tokens), int(num_ctas)) for tokens, num_ctas in found["ctas"]),
        )


def _rise(numbers: list[int]) -> bool:
    return all(a < b for a, b in pairwise(numbers))
