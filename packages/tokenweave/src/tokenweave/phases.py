"""Phases: the pieces of which a step's price consists, each a time on one resource."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Resource(StrEnum):
    """The core does arithmetic and moves bytes; a lane's link carries bytes while the core is free."""

    CORE = "core"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Phase:
    """`seconds` on one resource."""

    resource: Resource
    seconds: float


@dataclass(frozen=True, slots=True)
class PricedStep:
    """A step whose times are known one by one, for its operation's price to make phases of."""

    num_rows: int  # that it goes on with
    core_s: float
    link_s: float  # of a reduce-scatter of its rows, or of an all-gather
    handed_over_s: float  # of handing it from lane to lane
    select_s: (
        float | None
    )  # of the exchange of the residual of the rows that are wanted, if it ends with that
    moved: tuple[Phase, ...] = ()  # what one layer's blocks take between tiers of memory
