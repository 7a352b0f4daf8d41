"""A rank that finds its group in the environment, as under torchrun, sums and gathers, and prints what it got."""

from __future__ import annotations

import json
import sys
import warnings

import torch

from tokenweave.communicators import TorchCommunicator
from tokenweave.errors import RankError


def main(mode: str) -> None:
    warnings.simplefilter("error")
    with TorchCommunicator.from_environment(timeout_s=60) as comm:
        tensor = torch.full((300, 101), comm.rank + 1.0, dtype=torch.bfloat16)
        comm.all_reduce(tensor)
        command = comm.broadcast_bytes(b"x" * 100_000 if comm.rank == 0 else None, idle=True)
        gathered = comm.all_gather(torch.tensor([comm.rank]))
        print(json.dumps([tensor.unique().tolist(), len(command), gathered.tolist()]), flush=True)
        if mode == "wait":
            try:
                comm.broadcast_bytes(None if comm.rank else sys.stdin.buffer.readline(), idle=True)
            except RankError as error:
                print(json.dumps(error.rank), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
