"""SMs that two lanes of a GPU share: while a reduction's CTAs hold some, the products beside it have fewer.

More CTAs end a reduction sooner and take more from what is to hide it (published: 2 to 16 CTAs). So both are measured
for each number of CTAs, and which number a call takes follows from its tokens, and from whether its batch is woven.
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
    whole: (
        CtaRows  # chosen among them for reductions of a batch that is whole, where nothing runs beside them
    )
    woven: CtaRows  # for those of a part of a woven batch, beside the other part's products
    reduce: Curve  # of these: seconds of a part's reduction

    def __post_init__(self) -> None:
        known = [each.num_ctas for each in self.beside]
        if not known or known[0] < 1 or known[-1] >= self.num_sms or not _rise(known):
            raise TuneError(
                f"got times with {known} CTAs on {self.num_sms} SMs; expected ascending numbers from 1 on, and SMs left"
            )
        for rows in (self.whole, self.woven):
            if not rows or not _rise([tokens for tokens, _ in rows]):
                raise TuneError(f"got CTAs by tokens {rows}; expected pairs, the tokens rising")
            if unknown := {num_ctas for _, num_ctas in rows} - set(known):
                raise TuneError(f"got calls of {sorted(unknown)} CTAs; expected those with times, {known}")

    @classmethod
    def of(
        cls, num_sms: int, beside: tuple[BesideCtas, ...], whole: CtaRows = (), woven: CtaRows = ()
    ) -> SmSharing:
        """With a part's reductions as they were timed; without `whole` or `woven` the most CTAs are taken."""
        most: CtaRows = ((1, beside[-1].num_ctas),) if beside else ()
        woven = woven or most
        return cls(num_sms, beside, whole or most, woven, _reduce(beside, woven))

    def in_part(self, num_tokens: int) -> BesideCtas:
        """The times with the CTAs that a part's reduction of so many tokens takes."""
        return _times_of(self.beside, self.woven, num_tokens)

    def in_whole(self, num_tokens: int) -> BesideCtas:
        """The times with the CTAs that a whole batch's reduction of so many tokens takes."""
        return _times_of(self.beside, self.whole, num_tokens)

    def reduce_whole(self) -> Curve:
        """Seconds of a whole batch's reduction, at every number of tokens that was timed."""
        return _reduce(self.beside, self.whole)

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
            whole=_rows_from_json(found["whole"]),
            woven=_rows_from_json(found["woven"]),
            reduce=Curve.from_json(found["reduce"]),
        )


def _rise(numbers: list[int]) -> bool:
    return all(a < b for a, b in pairwise(numbers))


def _times_of(beside: tuple[BesideCtas, ...], rows: CtaRows, num_tokens: int) -> BesideCtas:
    at = bisect_left(rows, num_tokens, key=lambda row: row[0])
    num_ctas = rows[min(at, len(rows) - 1)][1]
    return next(each for each in beside if each.num_ctas == num_ctas)


def _reduce(beside: tuple[BesideCtas, ...], rows: CtaRows) -> Curve:
    """With the CTAs of `rows`, at every number of tokens that was timed."""
    tokens = sorted({count for each in beside for count in each.reduce.tokens})
    return Curve(tuple(tokens), tuple(_times_of(beside, rows, count).reduce(count) for count in tokens))


def _rows_from_json(found: Any) -> CtaRows:
    return tuple((int(tokens), int(num_ctas)) for tokens, num_ctas in found)
