"""The only place where tokenweave meets the environment: the variables of torchrun and of nccl, and TOKENWEAVE_ISA."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenweave.errors import CommunicatorError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class TorchrunEnvironment:
    """Where this process stands in a group that torchrun, or anything that sets its variables, started."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int
    store_is_hosted: bool = False  # torchrun's agent serves the store; otherwise rank 0 does
    attempt: int = 0  # how often torchrun has restarted the group; its store outlives the attempts


def torchrun_environment(environ: Mapping[str, str] | None = None) -> TorchrunEnvironment:
    """Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Raises:
        CommunicatorError: one of them is missing or makes no sense.
    """
    variables = os.environ if environ is None else environ
    found = TorchrunEnvironment(
        rank=_integer(variables, "RANK"),
        world_size=_integer(variables, "WORLD_SIZE"),
        master_addr=_text(variables, "MASTER_ADDR"),
        master_port=_integer(variables, "MASTER_PORT"),
        store_is_hosted=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=_integer(variables, "TORCHELASTIC_RESTART_COUNT", default="0"),
    )
    if not 0 <= found.rank < found.world_size:
        raise CommunicatorError(
            f"got RANK={found.rank}, WORLD_SIZE={found.world_size}; expected 0 <= RANK < WORLD_SIZE"
        )
    if not 0 < found.master_port < 65536:
        raise CommunicatorError(f"got MASTER_PORT={found.master_port}; expected 1 to 65535")
    return found


def torchrun_world_size(environ: Mapping[str, str] | None = None) -> int | None:
    """The number of ranks of the group this process was started in, or None when it was started alone."""
    variables = os.environ if environ is None else environ
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return None
    return _integer(variables, "WORLD_SIZE")


def torchrun_local_world_size(environ: Mapping[str, str] | None = None) -> int:
    """How many ranks of the group are on this host; 1 where LOCAL_WORLD_SIZE does not say."""
    variables = os.environ if environ is None else environ
    return _integer(variables, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in variables else 1


def torchrun_local_rank(environ: Mapping[str, str] | None = None) -> int:
    """This rank's number among the group's ranks on this host; where LOCAL_RANK does not say, that in the group."""
    variables = os.environ if environ is None else environ
    return _integer(variables, "LOCAL_RANK" if "LOCAL_RANK" in variables else "RANK")


def have_nccl_spare_the_process() -> None:
    """Has torch end what hangs over nccl, or fails, and not this process with it: what the user has not set, is set."""
    clean_up_only = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
        "TORCH_NCCL_ENABLE_MONITORING": "0",  # minutes after a timeout the monitor would end the process
        "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",  # in a thread of nccl's; the next call here raises them
    }
    for name, value in clean_up_only.items():
        os.environ.setdefault(name, value)


def may_ranks_share_gpus() -> bool:
    """Whether the user has several ranks use one GPU, for trials: by torch's own variable for symmetric memory."""
    return os.environ.get("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES") == "1"


def wanted_isa() -> str | None:
    """The instruction set that TOKENWEAVE_ISA holds the kernels to; None where it says nothing."""
    return os.environ.get("TOKENWEAVE_ISA") or None


def _text(variables: Mapping[str, str], name: str) -> str:
    if not variables.get(name):
        raise CommunicatorError(
            f"{name} is not set; start the ranks with torchrun, or set its variables by hand; to run alone, unset RANK "
            "and WORLD_SIZE"
        )
    return variables[name]


def _integer(variables: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = _text(variables, name) if default is None else variables.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise CommunicatorError(f"got {name}={text!r}; expected an integer") from None
