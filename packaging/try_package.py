"""Uses an installed package as its first user would: a few calls that pass through its native code.

Usage: try_package.py PACKAGE. It imports nothing but that package and what the package asks for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path


def emucxl() -> str:
    import emucxl

    with emucxl.Context(
        clock="virtual"
    ) as context:  # a busy machine can be too slow to play a tier in real time
        tier = context.add_tier("cxl", 1 << 20, timing="cxl-direct")
        buffer = tier.alloc(4096)
        buffer.write(b"hello")
        assert bytes(buffer.read(5)) == b"hello"
        assert bytes(memoryview(buffer)[:5]) == b"hello"
        assert context.now_ns > 0
    installed = {found.metadata["Name"] for found in distributions()} - {"pip", "setuptools", "wheel"}
    assert installed == {"emucxl"}, installed
    script = Path(sys.executable).with_name("emucxl")
    for command in ([script], [sys.executable, "-I", "-m", "emucxl"]):
        refused = subprocess.run([*command, "doctor"], capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("emucxl: the command needs typer: pip install "), refused.stderr
    return f"emucxl {emucxl.__version__}: a buffer in a modelled CXL tier, with no other package"


def tokenweave() -> str:
    import torch

    import tokenweave
    from tokenweave.communicators import thread_group
    from tokenweave.kernels import make_kernels

    kernels = make_kernels("native", threads=1)
    hidden = torch.ones(3, 64)
    normed = kernels.rms_norm(hidden, torch.ones(64), 1e-6)
    torch.testing.assert_close(normed, hidden, rtol=1e-5, atol=1e-5)
    (alone,) = thread_group(1)
    with alone:
        alone.barrier()
    return f"tokenweave {tokenweave.__version__}: a norm in native kernels"


def interlace() -> str:
    import interlace

    script = Path(sys.executable).with_name("interlace")
    shown = subprocess.run(
        [script, "doctor", "--json"], capture_output=True, text=True, timeout=120, check=True
    )
    told = json.loads(shown.stdout)
    assert (told["kernels"]["auto"], told["problems"]) == ("native", []), told
    return f"interlace {interlace.__version__}: the command finds native kernels"


if __name__ == "__main__":
    print({"emucxl": emucxl, "tokenweave": tokenweave, "interlace": interlace}[sys.argv[1]]())
