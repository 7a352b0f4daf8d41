"""Products through tiles (AMX), against the manual's text of TDPBF16PS and TDPBSSD in plain NumPy, bit for bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.kernel_cases import native_kernels
from tokenweave import native
from tokenweave.errors import NativeError
from tokenweave.kernels import NativeKernels

EMULATED = native.EMULATED_ISA
TILE_DEPTH = 32  # of k, in one product of tiles
SMALLEST_NORMAL = np.float32(2.0**-126)
TILE_ISAS = [isa for isa in ("amx", EMULATED) if isa in native.available_isas()]


def flushed(values: np.ndarray) -> np.ndarray:
    """Denormals as zeros of their sign: TDPBF16PS takes and gives none."""
    return np.where(np.abs(values) < SMALLEST_NORMAL, np.copysign(np.float32(0), values), values)


def rounded(exact: np.ndarray) -> np.ndarray:
    """The nearest float32, ties to even, and zero for what is below the normal ones once it is rounded."""
    # Scaled, what is tiny keeps all 24 bits while it is rounded: so the processor decides what is tiny.
    small = np.abs(exact) < 2.0**-100
    up = np.where(small, exact * 2.0**60, exact).astype(np.float32)
    tiny = small & (np.abs(up) < np.float32(2.0**-66))
    back = np.where(small, up.astype(np.float64) * 2.0**-60, up).astype(np.float32)
    return np.where(tiny, np.copysign(np.float32(0), back), back)


def tile_product(sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sums (m, n) += a (m, depth) b (n, depth)^T, as TDPBF16PS does it."""
    chains = [np.zeros(sums.shape, np.float32) for _ in range(2)]
    for k in range(0, a.shape[1], 2):
        for half in range(2):
            # Exact in float64: a product has 16 bits; the sum is rounded twice, to 53 bits and 24, which is as once.
            left, right = flushed(a[:, None, k + half]), flushed(b[None, :, k + half])
            chains[half] = rounded(left.astype(np.float64) * right + chains[half])
    pair = rounded(chains[0].astype(np.float64) + chains[1])
    return rounded(flushed(sums).astype(np.float64) + pair)


@np.errstate(all="ignore")
def product(x: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    a, b = x.float().numpy(), weight.float().numpy()
    padding = ((0, 0), (0, -a.shape[1] % TILE_DEPTH))
    a, b = np.pad(a, padding), np.pad(b, padding)
    sums = np.zeros((len(a), len(b)), np.float32)
    for k in range(0, a.shape[1], TILE_DEPTH):
        sums = tile_product(sums, a[:, k : k + TILE_DEPTH], b[:, k : k + TILE_DEPTH])
    return sums


def any_bits(seed: int, *shape: int, exponents: tuple[int, int]) -> torch.Tensor:
    """bfloat16 of random signs and fractions, with exponents of a range: 0 are denormals, 255 infinities and NaN."""
    random = np.random.default_rng(seed)
    sign, exponent, fraction = (
        random.integers(low, high, shape) for low, high in ((0, 2), exponents, (0, 128))
    )
    bits = (sign << 15 | exponent << 7 | fraction).astype(np.uint16)
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


CASES = {
    "ordinary": (120, 134),
    "far apart": (90, 165),  # most terms lie below half a unit of the sum
    "denormal results": (50, 76),  # products about 2**-126
    "denormal operands": (0, 3),
    "every finite one": (0, 255),
    "infinities and NaN": (240, 256),
}


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 32, 32), (16, 32, 64), (33, 70, 77)])
def test_tiles_multiply_as_the_manual_says(isa, case, m, n, k):
    kernels = native_kernels(isa)
    x, weight = (any_bits(seed, rows, k, exponents=CASES[case]) for seed, rows in ((m, m), (n + 1, n)))
    if case == "denormal operands":  # by large ones, so that a denormal that counted would show
        weight = any_bits(5, n, k, exponents=(200, 250))
    out = torch.empty(m, n)
    kernels.linear(x, kernels.pack(weight), out=out)
    got, expected = out.numpy(), product(x, weight)
    is_nan = np.isnan(expected)
    assert (np.isnan(got) == is_nan).all()
    # The bias, 0 here, is added last: a sum of -0 becomes 0.
    expected = np.where(is_nan, np.float32(0), expected + np.float32(0))
    assert (np.where(is_nan, np.float32(0), got).view(np.uint32) == expected.view(np.uint32)).all()


def test_what_the_thread_does_with_denormals_changes_no_bit_of_a_tile():
    kernels = NativeKernels(1, EMULATED)
    x, weight = (any_bits(seed, 20, 64, exponents=(50, 76)) for seed in (1, 2))
    packed, before, after = kernels.pack(weight), torch.empty(20, 20), torch.empty(20, 20)
    kernels.linear(x, packed, out=before)
    torch.set_flush_denormal(True)
    try:
        kernels.linear(x, packed, out=after)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(before, after)


@pytest.mark.skipif("amx" not in TILE_ISAS, reason=f"amx is {native.amx_state()}")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 576), (16, 96, 100), (40, 33, 2048), (100, 40, 31)])
@pytest.mark.parametrize("case", CASES)
def test_the_emulation_gives_the_processors_bits(m, n, k, case):
    x, weight = (any_bits(seed, rows, k, exponents=CASES[case]) for seed, rows in ((m, m), (n + 1, n)))
    outs = []
    for isa in TILE_ISAS:
        kernels, out = native_kernels(isa), torch.empty(m, n)
        kernels.linear(x, kernels.pack(weight), out=out)
        outs.append(torch.where(out.isnan(), 0, out).view(torch.int32))
    assert torch.equal(*outs)


# How a program of tiles is compiled: emulated, and for the processor's own.
PROGRAM = Path(__file__).parent / "native" / "tile_products.cpp"
TILE_FLAGS = {
    EMULATED: ("-march=x86-64-v2",),
    "amx": ("-march=x86-64-v4", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}
COMPILER = shutil.which("c++")


@pytest.fixture(scope="module")
def tile_products(tmp_path_factory) -> list[Callable[..., None]]:
    """Single products of int8 tiles: emulated, and by the processor's own where it has them."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    native_source = PROGRAM.parents[2] / "native"
    found = []
    for isa in TILE_ISAS:
        library = tmp_path_factory.mktemp("tiles") / f"{isa}.so"
        flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-psabi", *TILE_FLAGS[isa])
        includes = (f"-I{native_source}", f"-I{native_source / 'include'}")
        command = [COMPILER, *flags, *includes, str(PROGRAM), "-o", str(library)]
        subprocess.run(command, check=True)
        found.append(ctypes.CDLL(str(library)).tile_product_i8)
    return found


sizes = st.integers(1, 16)
CODES = {"any": (-128, 128), "smallest": (-128, -127), "largest": (127, 128)}


@settings(max_examples=60)
@given(sizes, sizes, sizes, st.sampled_from(list(CODES)), st.sampled_from(list(CODES)), st.integers(0, 99))
def test_tiles_multiply_bytes_as_the_manual_says(tile_products, rows, words, columns, left, right, seed):
    """Sums near both ends of int32 wrap: TDPBSSD doesn't saturate."""
    random = np.random.default_rng(seed)
    a = random.integers(*CODES[left], (rows, words, 4), dtype=np.int8)
    b = random.integers(*CODES[right], (words, columns, 4), dtype=np.int8)
    ends = random.choice([-(2**31), 0, 2**31 - 1], (rows, columns))
    sums = (ends + random.integers(0, 2, ends.shape) * -np.sign(ends)).astype(np.int32)
    products = np.einsum("mkb,knb->mn", a.astype(np.int64), b.astype(np.int64))
    expected = (sums + products).astype(np.uint64).astype(np.uint32).view(np.int32)  # modulo 2^32
    for tile_product in tile_products:
        got = sums.copy()
        tile_product(rows, words, columns, *(ctypes.c_void_p(array.ctypes.data) for array in (a, b, got)))
        assert (got == expected).all()


def test_amx_is_refused_with_its_reason_where_it_is_unavailable(monkeypatch):
    refused = native.AMX_STATES[3]
    monkeypatch.setattr(native, "amx_state", lambda: refused)
    monkeypatch.setattr(
        native, "available_isas", lambda: ("baseline", "avx2", "avx512", "avx512bf16", EMULATED)
    )
    monkeypatch.setenv("TOKENWEAVE_ISA", "amx")
    with pytest.raises(NativeError, match=r"amx is unavailable: Linux refused .*arch_prctl"):
        native.selected_isa()
    monkeypatch.setenv("TOKENWEAVE_ISA", "avx512bf16")
    assert native.selected_isa() == "avx512bf16"
    assert native.features()["amx"] == refused


def test_the_emulated_tiles_are_never_chosen_by_themselves(monkeypatch):
    monkeypatch.delenv("TOKENWEAVE_ISA", raising=False)
    assert native.selected_isa() == native.available_isas()[-2]
    assert native.available_isas()[-1] == EMULATED
    monkeypatch.setenv("TOKENWEAVE_ISA", EMULATED)
    assert native.selected_isa() == EMULATED


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_the_library_has_the_instructions_of_tiles():
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(native.library_path())]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for instruction in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tdpbssd", "tilestored", "tilerelease"):
        assert f"\t{instruction} " in listing or f"\t{instruction}\n" in listing
