"""TierSpec: a tier of the simulated cache as a person writes it: "local:64GB", "cxl:1TB@cxl-direct"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from emucxl.errors import EmucxlError
from emucxl.presets import preset
from emucxl.timing import Timing
from interlace.errors import BlockTraceError
from tokenweave.errors import CommunicatorError
from tokenweave.link import LinkSpec

UNLIMITED = "unlimited"
EXPECTED_SIZE = f"a number of blocks (1000), bytes (64GB, 512MiB), or {UNLIMITED}"
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)([KMGT])(i?)B", re.ASCII)
_TIER = re.compile(r"([\w-]+)(?::([^@]+))?(?:@(.+))?", re.ASCII)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Size:
    """The capacity of a tier, in blocks or in bytes. Neither: unlimited."""

    blocks: int | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Size:
        """Reads `text`: "1000" are blocks, "64GB" and "64GiB" bytes.

        Raises:
            BlockTraceError: it says something else.
        """
        if text == UNLIMITED:
            return cls()
        if re.fullmatch(r"\d{1,15}", text, re.ASCII):
            return cls(blocks=int(text))
        found = _SIZE.fullmatch(text)
        if found is None:
            raise BlockTraceError(f"got the size {text!r}; expected {EXPECTED_SIZE}")
        unit = (1024 if found[3] else 1000) ** _POWERS[found[2]]
        return cls(bytes=int(float(found[1]) * unit))

    def in_blocks(self, block_bytes: int) -> int | None:
        """Whole blocks that fit; None: no limit."""
        return self.blocks if self.bytes is None else self.bytes // block_bytes


@dataclass(frozen=True)
class TierSpec:
    """A tier: its name, its size (None: it is to be tried in many sizes), and what a read costs (None: nothing)."""

    name: str
    size: Size | None = None
    timing: Timing | None = None
    timing_text: str = ""

    @classmethod
    def parse(cls, text: str) -> TierSpec:
        """Reads NAME[:SIZE][@TIMING]; TIMING is a preset of emucxl or a bandwidth and a latency ("12GB/s,5us").

        Raises:
            BlockTraceError: it says something else.
        """
        found = _TIER.fullmatch(text)
        if found is None:
            raise BlockTraceError(
                f"got the tier {text!r}; expected NAME[:SIZE][@TIMING], such as cxl:1TB@cxl-direct"
            )
        name, size, timing = found.groups()
        return cls(
            name,
            None if size is None else Size.parse(size),
            None if timing is None else _timing(timing),
            timing or "",
        )


def _timing(text: str) -> Timing:
    try:
        if "/s" not in text:
            return preset(text).timing
        link = LinkSpec.parse(text)
        return Timing(read_latency_ns=link.latency_ns, read_bandwidth_gbps=link.bandwidth_gbps)
    except (EmucxlError, CommunicatorError) as error:
        raise BlockTraceError(f"the timing of a tier: {error}") from error
