"""KvTierSpec: a tier of memory below the KV cache, as a person writes it: "cxl:8GB@cxl-direct", "dax:/dev/dax0.0".

Imports nothing heavy: an engine's configuration checks it before anything is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emucxl.errors import EmucxlError
from emucxl.presets import preset
from emucxl.timing import Timing
from interlace.cache.tier_spec import Size
from interlace.errors import BlockTraceError, EngineError
from tokenweave.errors import CommunicatorError
from tokenweave.link import LinkSpec

if TYPE_CHECKING:
    from emucxl.providers import Provider

EXPECTED = (
    "NAME:SIZE[@TIMING], such as cxl:8GB@cxl-direct; or numa:NODE[:SIZE], dax:PATH[:SIZE] or shm:SIZE, each with or "
    "without @TIMING"
)
RANK = "{rank}"  # in a path: each rank's own
_TIER = re.compile(r"([A-Za-z][\w-]{0,22}):([^@]+)(?:@(.+))?", re.ASCII)
_NODE = re.compile(r"(\d{1,4})(?::(.+))?", re.ASCII)
_PATH = re.compile(r"(/[^:]*)(?::([^:/]+))?")
_NO_NAME = re.compile(r"[^\w.-]", re.ASCII)  # characters of a path that no name has
MOST_LETTERS = 23  # of a name, for tiers of emucxl have names of 31 bytes, with what they are for


@dataclass(frozen=True)
class KvTierSpec:
    """A tier: its name, where its pages come from, the bytes of it for each rank, and what it is modelled as."""

    name: str
    size_bytes: int | None  # None: all that a device has, or that is free of a node
    timing: Timing | None = None  # None: as fast as it is
    node: int | None = None
    path: str | None = None
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> KvTierSpec:
        """Reads `text`; EXPECTED says what it may be. TIMING is a preset of emucxl, or a bandwidth and a latency.

        Raises:
            EngineError: it says something else.
        """
        found = _TIER.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise EngineError(f"got the tier {text!r}: expected {EXPECTED}")
        name, where, timing_text = found.groups()
        timing = None if timing_text is None else _timing(text, timing_text)
        if name == "numa":
            node, size = _matched(_NODE, where, text)
            return cls(f"numa{node}", _bytes(text, size), timing, node=int(node), text=text)
        if name == "dax":
            path, size = _matched(_PATH, where, text)
            return cls(_name_of(path), _bytes(text, size), timing, path=path, text=text)
        return cls(name, _bytes(text, where), timing, text=text)

    def provider(self, rank: int, num_ranks: int) -> Provider:
        """Where the pages of `rank` come from.

        Raises:
            EngineError: several ranks would have one device's bytes.
        """
        from emucxl.providers import Anon, Dax, Numa, Shm

        if self.node is not None:
            return Numa(self.node)
        if self.path is not None:
            if num_ranks > 1 and RANK not in self.path:
                raise EngineError(
                    f"got the tier {self.text!r} for {num_ranks} ranks: expected a device for each, such as "
                    f"dax:/dev/dax{RANK}.0 (the rank's number takes the place of {RANK})"
                )
            return Dax(self.path.replace(RANK, str(rank)))
        return Shm() if self.name == "shm" else Anon()


def _name_of(path: str) -> str:
    """The last part of a device's path: dax0.0, and daxN.0 for one of each rank."""
    name = path.replace(RANK, "N").rpartition("/")[2]
    return _NO_NAME.sub("_", name)[:MOST_LETTERS] or "dax"


def _matched(pattern: re.Pattern[str], where: str, text: str) -> tuple[str, str | None]:
    found = pattern.fullmatch(where)
    if found is None:
        raise EngineError(f"got the tier {text!r}: expected {EXPECTED}")
    return found[1], found[2]


def _bytes(text: str, size: str | None) -> int | None:
    if size is None:
        return None
    try:
        found = Size.parse(size).bytes
    except BlockTraceError as error:
        raise EngineError(
            f"got the tier {text!r}: expected a size such as 8GB or 512MiB, got {size!r}"
        ) from error
    if not found:
        raise EngineError(
            f"got the tier {text!r}: expected a size in bytes such as 8GB or 512MiB, got {size!r}"
        )
    return found


def _timing(text: str, timing: str) -> Timing:
    try:
        if "/s" not in timing:
            return preset(timing).timing
        link = LinkSpec.parse(timing)
        return Timing(link.latency_ns, link.latency_ns, link.bandwidth_gbps, link.bandwidth_gbps)
    except (EmucxlError, CommunicatorError) as error:
        raise EngineError(f"the timing of the tier {text!r}: {error}") from error
