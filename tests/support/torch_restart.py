"""One rank of two over torch. Rank 0 first waits in vain, at a port of its own, and then meets rank 1 at another.

Usage: torch_restart.py RANK PORT LATER_PORT
"""

from __future__ import annotations

import sys

from tokenweave.communicators import TorchCommunicator
from tokenweave.errors import CommunicatorTimeout


def main(rank: int, port: int, later_port: int) -> None:
    if rank == 0:
        try:
            TorchCommunicator.connect(0, 2, "127.0.0.1", port, timeout_s=0.5)
        except CommunicatorTimeout as error:
            print(error)
    with TorchCommunicator.connect(rank, 2, "127.0.0.1", later_port, timeout_s=60) as ranks:
        ranks.barrier()
    if rank == 0:
        print("met")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
