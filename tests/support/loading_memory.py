"""A program: loads models one after the other, and prints what each took of memory, as JSON.

python loading_memory.py WARM_UP MODEL,QUANTIZE,DTYPE ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from interlace.models.config import weight_shapes
from interlace.models.decoder import Decoder
from interlace.models.shard import Shard
from interlace.models.sources import load_model
from tokenweave.communicators import NullCommunicator
from tokenweave.kernels import make_kernels


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def load(name: str, quantize: str, dtype: str) -> dict[str, int]:
    """The bytes of the weights and of a layer in memory, and how far the resident set rose at most."""
    model, kernels = load_model(name, quiet=True), make_kernels("native", threads=1)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set so far is what it is now
    before_bytes = status_bytes("VmRSS")
    shard = Shard.of(model.config, 0, 1)
    decoder = Decoder(model.weights, shard, kernels, NullCommunicator(), getattr(torch, dtype), 64, quantize)
    rise_bytes = status_bytes("VmHWM") - before_bytes
    values = [
        torch.Size(shape).numel()
        for name, shape in weight_shapes(model.config).items()
        if name.startswith("layers.0.")
    ]
    size = sum(values) * getattr(torch, dtype).itemsize
    return {"weights_bytes": decoder.size_bytes, "layer_bytes": size, "rise_bytes": rise_bytes}


if __name__ == "__main__":
    cases = [case.split(",") for case in sys.argv[1:]]
    loads = [load(*case) for case in cases]
    json.dump(loads[1:], sys.stdout)  # the first touched the code
