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
