"""Cold start: from the command `interlace generate` to its first byte of answer, in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from interlace.errors import BenchError

PROMPT = "What is the capital of France?"
TIMEOUT_S = 120.0


def time_to_first_token(model: str, tp: int, device: str = "cpu") -> float:
    """Seconds until the command has printed the first byte.

    Raises: BenchError when it prints nothing.
    """
    command = [
        str(Path(sys.executable).with_name("interlace")),
        "generate",
        "--model",
        model,
        "--tp",
        str(tp),
        "--device",
        device,
    ]
    sampling = ["--temperature", "0", "--max-tokens", "8"]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, *sampling, PROMPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed_s = time.perf_counter() - start
        _, errors = process.communicate(timeout=TIMEOUT_S)
    if not first or process.returncode != 0:
        raise BenchError(f"`interlace generate` ended with {process.returncode}: {errors.decode().strip()}")
    return elapsed_s
