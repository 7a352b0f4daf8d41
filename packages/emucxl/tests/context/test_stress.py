"""Threads that share a context, under the sanitizers; and memory that a copy in flight uses."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from emucxl import abi, errors, native
from support.c_programs import compile_program, compiler, run_program
from support.native_context import MIB, NativeContext

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_threads_share_a_context(tmp_path: Path, sanitize: str) -> None:
    program = compile_program(Path("stress_context.c"), tmp_path, sanitize)
    for seed in (1, 2, 3):
        assert run_program(program, seed, 5000) == "20000 operations\n"


class CopyRequest(ctypes.Structure):
    _fields_ = (
        ("destination", ctypes.c_void_p),
        ("source", ctypes.c_void_p),
        ("size_bytes", ctypes.c_size_t),
    )


ENGINE_SIGNATURES: native.Signatures = {
    "emx_engine_create": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p)]),
    "emx_engine_close": (None, [ctypes.c_void_p]),
    "emx_engine_submit": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.POINTER(CopyRequest), ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)],
    ),
    "emx_completion_release": (None, [ctypes.c_void_p]),
}


def test_memory_of_a_copy_in_flight_is_neither_freed_nor_moved() -> None:
    calibration = abi.RawCalibration(
        read_latency_ns=100, write_latency_ns=100, read_bandwidth_gbps=5, write_bandwidth_gbps=5
    )
    with NativeContext(calibration=calibration) as context:
        # A handle of its own: the signatures of the other are emucxl.copy_engine's.
        library = ctypes.CDLL(str(native.library_path()))
        native.declare(library, ENGINE_SIGNATURES)
        near = context.add_tier("near")
        slow = context.add_tier(
            "slow", timing=abi.RawTiming(read_bandwidth_gbps=0.05, write_bandwidth_gbps=0.05)
        )
        source, target = context.alloc(near, 8 * MIB), context.alloc(slow, 8 * MIB)
        engine, completion = ctypes.c_void_p(), ctypes.c_void_p()
        native.check(library.emx_engine_create(context.handle, 1, ctypes.byref(engine)))
        request = CopyRequest(target + 64, source, 8 * MIB - 64)  # modelled to take 160 ms
        native.check(library.emx_engine_submit(engine, request, 1, ctypes.byref(completion)))
        for call in (
            lambda: context.free(source),
            lambda: context.free(target),
            lambda: context.resize(target, 16),
            lambda: context.migrate(source, slow),
        ):
            with pytest.raises(
                errors.InUseError, match="used by 1 copies in flight; wait for their completions"
            ):
                call()
        library.emx_completion_release(completion)
        context.free(source)
        context.free(context.migrate(target, near))
        library.emx_engine_close(engine)
