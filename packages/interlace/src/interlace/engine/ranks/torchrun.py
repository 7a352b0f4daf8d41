"""A check of the variables that torchrun sets: they may be left over from an earlier run.

A process that finds RANK and WORLD_SIZE in its environment is one rank of a group that something else starts, and waits
for the others. A user who meant to run alone would learn of it only when the wait ends, after a minute. So a warning or
an error comes before the wait.
"""

from __future__ import annotations

import logging
import socket

from interlace.errors import EngineError
from tokenweave.environment import TorchrunEnvironment

PROBE_S = 5.0  # for an answer from the host that torchrun's agent is on
_log = logging.getLogger("interlace")


def announce(where: TorchrunEnvironment, timeout_s: float) -> None:
    """Warns which group this process waits for, unless torchrun's agent is there: then torchrun did start it.

    Raises:
        EngineError: torchrun set the variables, and its agent has ended.
    """
    place = f"{where.master_addr}:{where.master_port}"
    said = f"RANK={where.rank} and WORLD_SIZE={where.world_size}"
    if not where.store_is_hosted:
        _log.warning(
            f"{said} make this process one of {where.world_size} ranks: waiting at {place} for the others, up to "
            f"{timeout_s:g} s; to run alone, unset RANK and WORLD_SIZE, or set communicator to 'shm'"
        )
        return
    try:
        socket.create_connection((where.master_addr, where.master_port), timeout=PROBE_S).close()
    except OSError as error:
        raise EngineError(
            f"{said} make this process a rank that torchrun started, and torchrun's agent is not at {place} any more "
            f"({error.strerror or error}): these variables are left over from an earlier run; unset RANK, WORLD_SIZE, "
            f"MASTER_ADDR, MASTER_PORT and TORCHELASTIC_USE_AGENT_STORE, or start the ranks with torchrun"
        ) from None
