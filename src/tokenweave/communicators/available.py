"""Which communicators can be had here; for `doctor`."""

from __future__ import annotations


def availability() -> dict[str, str | None]:
    """For each backend None when it can be used here, else the reason why not."""
    return {"null": None, "thread": None, "shm": _shm_reason(), "torch": _torch_reason()}


def _shm_reason() -> str | None:
    from emucxl.shared_memory import unavailable_reason
    from tokenweave.communicators.shm_abi import library
    from tokenweave.errors import NativeError

    try:
        library()
    except NativeError as error:
        return str(error)
    return unavailable_reason()


def _torch_reason() -> str | None:
    from torch import distributed

    if not distributed.is_available():
        return "this build of torch has no torch.distributed"
    if not distributed.is_gloo_available():
        return "this build of torch has no gloo"
    return None
