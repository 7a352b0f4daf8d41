"""emucxl: memory in tiers, real or modelled, behind one interface (arXiv 2404.08311).

    import emucxl

    with emucxl.Context() as context:
        cxl = context.add_tier("cxl", 1 << 30, timing="cxl-direct")
        buffer = cxl.alloc(4096)
        buffer.write(b"hello")

The lowest layer: it knows nothing of tensors or models. It imports neither torch nor `tokenweave` nor `interlace`, and
numpy, typer and rich only inside what needs them. Names are imported when first used, so that `import emucxl` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucxl.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from emucxl.buffer import Buffer
    from emucxl.calibration import Calibration
    from emucxl.coherence import Cache, Coherence
    from emucxl.context import Allocation, Context
    from emucxl.copies import Copy, IndexedCopy
    from emucxl.copy_engine import Completion, CopyEngine
    from emucxl.errors import EmucxlError
    from emucxl.links import Link
    from emucxl.pool import Pool
    from emucxl.presets import Preset, preset
    from emucxl.providers import Anon, Dax, Null, Numa, RegionMemory, Shm
    from emucxl.shared_memory import SharedSegment
    from emucxl.tiers import Tier, TierInfo, TierStats
    from emucxl.timing import CurvePoint, Timing

_HOMES = {
    "Allocation": "context",
    "Anon": "providers",
    "Buffer": "buffer",
    "Cache": "coherence",
    "Calibration": "calibration",
    "Coherence": "coherence",
    "Completion": "copy_engine",
    "Context": "context",
    "Copy": "copies",
    "CopyEngine": "copy_engine",
    "CurvePoint": "timing",
    "Dax": "providers",
    "EmucxlError": "errors",
    "IndexedCopy": "copies",
    "Link": "links",
    "Null": "providers",
    "Numa": "providers",
    "Pool": "pool",
    "Preset": "presets",
    "RegionMemory": "providers",
    "SharedSegment": "shared_memory",
    "Shm": "providers",
    "Tier": "tiers",
    "TierInfo": "tiers",
    "TierStats": "tiers",
    "Timing": "timing",
    "preset": "presets",
}

__all__ = [
    "Allocation",
    "Anon",
    "Buffer",
    "Cache",
    "Calibration",
    "Coherence",
    "Completion",
    "Context",
    "Copy",
    "CopyEngine",
    "CurvePoint",
    "Dax",
    "EmucxlError",
    "IndexedCopy",
    "Link",
    "Null",
    "Numa",
    "Pool",
    "Preset",
    "RegionMemory",
    "SharedSegment",
    "Shm",
    "Tier",
    "TierInfo",
    "TierStats",
    "Timing",
    "preset",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
