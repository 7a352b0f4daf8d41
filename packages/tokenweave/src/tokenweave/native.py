"""The native library: finding it, loading it, and turning its status codes into exceptions.

The environment variable TOKENWEAVE_ISA (baseline, avx2, avx512, avx512bf16, amx) holds the kernels to an older
instruction set than the best this CPU has; amx-emulated is amx with its tiles in plain C++, which runs anywhere,
slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from emucxl.native import installed_library
from tokenweave.environment import wanted_isa
from tokenweave.errors import KernelError, NativeError

ABI_VERSION = 3
EMULATED_ISA = "amx-emulated"  # to test the kernels of amx anywhere; never chosen by itself
ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "amx", EMULATED_ISA)  # in the order of tw_isa
AMX_STATES = (  # in the order of tw_amx_state_code
    "ready",
    "unavailable: this processor has no tiles of bfloat16 and int8",
    "unavailable: the operating system or the hypervisor does not keep tiles (XCR0)",
    "unavailable: Linux refused this process the permission for tiles (arch_prctl), as a sandbox may, or a signal "
    "stack too small for them",
)
STATUS = {
    -1: "invalid argument",
    -2: "out of memory or threads",
    -3: "unsupported by this CPU",
    -4: "timed out",
    -5: "aborted",
}
LIMITS = (
    "fma_gflops",
    "bf16_gflops",
    "read_gbps",
    "fused_f32_gbps",
    "fused_bf16_gbps",
)  # in the order of tw_limit

_p, _i, _l = c_void_p, c_int, c_int64
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "tw_best_isa": (_i, []),
    "tw_amx_state": (_i, []),
    "tw_pool_create": (_i, [_i, _i, POINTER(_p)]),
    "tw_pool_destroy": (None, [_p]),
    "tw_packed_size_bytes": (_l, [_l, _l, _i]),
    "tw_pack": (_i, [_p, _p, _l, _i, _l, _l, _p, _i]),
    "tw_linear": (_i, [_p, _p, _l, _p, _p, _p, _l, _l, _l, _l, _i, _i]),
    "tw_gated_linear": (_i, [_p, _p, _l, _p, _p, _p, _p, _p, _l, _l, _l, _l, _i, _i]),
    "tw_gather_rows": (_i, [_p, _p, _p, _l, _l, _l, _l, _p, _i]),
    "tw_stored_size_bytes": (_l, [_i, _l, _l, _l]),
    "tw_pack_stored": (_i, [_p, _p, _l, _i, _l, _l, _l, _p]),
    "tw_stored_linear": (_i, [_p, _p, _l, _p, _p, _p, _l, _l, _i, _i]),
    "tw_stored_gated_linear": (_i, [_p, _p, _l, _p, _p, _p, _p, _p, _l, _l, _i, _i]),
    "tw_stored_gather_rows": (_i, [_p, _p, _p, _l, _l, _p, _i]),
    "tw_rms_norm": (_i, [_p, _p, _l, _p, _l, _p, _p, _l, _l, _l, _i]),
    "tw_silu_and_mul": (_i, [_p, _p, _l, _p, _l, _l, _i]),
    "tw_gelu_tanh_and_mul": (_i, [_p, _p, _l, _p, _l, _l, _i]),
    "tw_rope_and_store": (_i, [_p, _p, _l, _p, _l, _p, _p, _p, _i]),
    "tw_paged_attention": (_i, [_p, _p, _l, _p, _l, _p, _p, _p, _i]),
    "tw_attention_tasks": (_l, [_p, _p, _p]),
    "tw_sample": (_i, [_p, _p, _l, _l, _l, _p, _p, _p, _l]),
    "tw_replay_function": (_i, [c_char_p]),
    "tw_replay": (_i, [_p, _l, _p, _p]),
    "tw_set_zero": (_i, [_p, _l]),
    "tw_copy": (_i, [_p, _p, _l]),
    "tw_scale": (_i, [_p, _l, _p, _i]),
    "tw_lanes_create": (_i, [_i, _l, _l, POINTER(c_void_p)]),
    "tw_lanes_destroy": (None, [_p]),
    "tw_lanes_begin": (_i, [_p]),
    "tw_lane_wait": (_i, [_p, _i, _l]),
    "tw_lane_done": (_i, [_p, _i]),
    "tw_lanes_fail": (_i, [_p]),
    "tw_measure_limit": (_i, [_p, _i, c_double, POINTER(c_double)]),
}


def library_path() -> Path:
    """Where the library is installed."""
    return installed_library("tokenweave", Path(__file__).with_name("libtokenweave.so"))


@cache
def load() -> ctypes.CDLL:
    """The loaded library with its kernels' signatures declared. Raises NativeError."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"cannot load the native library {path}: {error}; reinstall the package") from error
    version = loaded.tw_abi_version()
    if version != ABI_VERSION:
        raise NativeError(
            f"{path} has ABI version {version}, expected {ABI_VERSION}; rebuild it with `make native`"
        )
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:  # added since the library was built
            raise NativeError(
                f"{path} has no {name}: it is older than this package; rebuild it with `make native`"
            )
        function.restype, function.argtypes = result, arguments
    return loaded


@cache
def build() -> str:
    """A short name of the library's build, by its bytes. What was measured with another build may not hold."""
    return hashlib.blake2b(library_path().read_bytes(), digest_size=4).hexdigest()


def unavailable_reason() -> str | None:
    """Why native kernels cannot run here, or None if they can."""
    try:
        selected_isa()
    except NativeError as error:
        return str(error)
    return None


def selected_isa() -> str:
    """The instruction set that new pools use: the best of this CPU, or TOKENWEAVE_ISA. Raises NativeError."""
    wanted = wanted_isa() or ISAS[load().tw_best_isa()]
    if wanted not in available_isas():
        why = f"; amx is {amx_state()}" if wanted == "amx" else ""
        raise NativeError(f"TOKENWEAVE_ISA is {wanted!r}, expected one of {', '.join(available_isas())}{why}")
    return wanted


def available_isas() -> tuple[str, ...]:
    """The instruction sets that the kernels can run on here, the emulated one last."""
    return (*ISAS[: load().tw_best_isa() + 1], EMULATED_ISA)


def amx_state() -> str:
    """Whether this process may use the processor's tiles, and why not."""
    return AMX_STATES[load().tw_amx_state()]


def features() -> dict[str, str]:
    """Returns the facts of the native library for a report on this machine."""
    return {"library": str(library_path()), **instruction_sets()}


def instruction_sets() -> dict[str, str]:
    """Returns the instruction set in use, the best of this machine, and whether its matrix tiles can be used."""
    return {"isa": selected_isa(), "best_isa": ISAS[load().tw_best_isa()], "amx": amx_state()}


def check_status(status: int, call: str) -> None:
    """Raises for a status other than TW_OK: KernelError for bad arguments, else NativeError."""
    if status == -1:
        raise KernelError(f"{call}: {STATUS[status]}")
    if status != 0:
        raise NativeError(f"{call}: {STATUS.get(status, f'unknown status {status}')}")


class ThreadPool:
    """A team of native worker threads, the caller being one of them.

    Thread safety: one call at a time; separate pools are independent.
    """

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        self._handle, self._pid = c_void_p(), os.getpid()
        self.library: Any = load()
        self.threads = threads
        self.isa = isa or selected_isa()
        if self.isa not in ISAS:
            raise NativeError(f"isa is {self.isa!r}, expected one of {', '.join(ISAS)}")
        created = self.library.tw_pool_create(threads, ISAS.index(self.isa), byref(self._handle))
        check_status(created, f"tw_pool_create({threads}, {self.isa})")

    @property
    def handle(self) -> int:
        if self._handle.value is None:
            raise NativeError("the kernels' thread pool is closed")
        return self._handle.value

    def raise_status(self, status: int, call: str) -> None:
        """Raises what a call of the pool that returned `status` raises."""
        check_status(status, call)

    def close(self) -> None:
        """Ends the workers. The pool takes no calls afterwards. In a fork there are none to wait for."""
        handle, self._handle = self._handle, c_void_p()
        if handle.value is not None and os.getpid() == self._pid:
            self.library.tw_pool_destroy(handle)

    def __del__(self) -> None:
        self.close()


def measure_limit(limit: str, threads: int = 1, seconds: float = 0.2) -> float:
    """Measures the most that `threads` threads reach on this machine, by a loop that does nothing else.

    `limit`: "fma_gflops" (float32), "bf16_gflops" (bfloat16 products, of tiles where AMX is used), or "read_gbps", in
    1e9 per second.
    """
    if limit not in LIMITS:
        raise NativeError(f"limit is {limit!r}, expected one of {', '.join(LIMITS)}")
    pool, value = ThreadPool(threads), c_double()
    check_status(load().tw_measure_limit(pool.handle, LIMITS.index(limit), seconds, byref(value)), limit)
    pool.close()
    return value.value
