"""A pytest plugin (-p support.sanitized_library): the kernels come from the library that KERNEL_LIBRARY names."""

from __future__ import annotations

import os
from pathlib import Path

from tokenweave import native


def use_library(path: Path) -> None:
    native.library_path = lambda: path


use_library(Path(os.environ["KERNEL_LIBRARY"]))
