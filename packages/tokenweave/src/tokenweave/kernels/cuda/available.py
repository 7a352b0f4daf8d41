"""Whether Triton's kernels can run on a GPU here. Needs no triton."""

from __future__ import annotations

from importlib.util import find_spec

import torch

# 3.2 and 3.3 lack what the kernels call. 3.4 compiles some loops wrongly: it does not hand an atomic's result to all
# threads of a CTA, so only the first warp of a barrier would see the peers' signals; the others wait for the timeout.
MIN_TRITON = (3, 5)
# Ampere: matrix units for bfloat16. multimem needs (9, 0) and a switch, and is chosen only where it is there.
MIN_CAPABILITY = (8, 0)


def unavailable_reason() -> str | None:
    """Why the CUDA kernels cannot run here, and what to do about it; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if torch.version.hip is not None:
        return "this torch is built for ROCm; the kernels were written for CUDA and have not been tried there"
    return device_reason() or triton_reason()


def device_reason() -> str | None:
    """Why the current CUDA device does not do, or None."""
    if not torch.cuda.is_available():
        built = "for CPUs only" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        return f"there is no CUDA device (this torch is built {built})"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return f"the device has compute capability {capability}, expected {MIN_CAPABILITY} (Ampere) or newer"
    return None


def triton_reason() -> str | None:
    """Why the Triton that is installed does not do, or None."""
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_TRITON:
        wanted = ".".join(map(str, MIN_TRITON))
        return (
            f"triton is {triton.__version__}, expected {wanted} or newer: 3.4 compiles some loops wrongly, and older "
            f"ones lack what the kernels call; pip install 'triton>={wanted}'"
        )
    return None
