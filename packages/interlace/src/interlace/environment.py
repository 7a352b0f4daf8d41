"""The environment variables that interlace reads. No other file of the package looks at them.

INTERLACE_CACHE   where fetched models are kept, and what was measured of this machine
XDG_CACHE_HOME    where the user's caches lie, if INTERLACE_CACHE is not set
CUDA_VISIBLE_DEVICES   whether the user has hidden all GPUs

The libraries below have their own: HF_HOME, HF_TOKEN and HF_HUB_OFFLINE (huggingface_hub), pip's, torchrun's.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Where models and measurements are kept: $INTERLACE_CACHE, or `interlace` in the user's cache directory."""
    own = os.environ.get("INTERLACE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "interlace"


def are_gpus_hidden() -> bool:
    """Whether the user has CUDA show this process no GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def subprocess_environment(**changes: str) -> dict[str, str]:
    """This process's environment with some variables changed, for a program it starts."""
    return {**os.environ, **changes}
