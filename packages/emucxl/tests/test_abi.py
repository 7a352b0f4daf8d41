"""The structures as Python sees them are laid out as the C compiler lays them out."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
from pathlib import Path

import pytest

from emucxl import abi, resources
from emucxl.native import EXCEPTIONS, library_path

INCLUDE = Path(__file__).parents[1] / "native" / "include"
STRUCTURES = [
    abi.RawCurvePoint,
    abi.RawTiming,
    abi.RawLinkConfig,
    abi.RawLinkStats,
    abi.RawCalibration,
    abi.ContextConfig,
    abi.TierConfig,
    abi.RawTierInfo,
    abi.RawTierStats,
    abi.RawAllocation,
    abi.Access,
    resources.Struct,
]


def c_name(structure: type) -> str:
    if structure is resources.Struct:
        return "emx_resources"
    return "emx" + re.sub(
        "[A-Z]", lambda letter: "_" + letter[0].lower(), structure.__name__.removeprefix("Raw")
    )


def layout(structure: type[ctypes.Structure]) -> list[tuple[str, int, int]]:
    rows = [
        (name, getattr(structure, name).offset, getattr(structure, name).size)
        for name, *_ in structure._fields_
    ]
    return [("sizeof", 0, ctypes.sizeof(structure)), *rows]


@pytest.fixture(scope="module")
def compiled_layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, int, int]]]:
    lines = []
    for structure in STRUCTURES:
        name = c_name(structure)
        lines.append(f'printf("{name} sizeof 0 %zu\\n", sizeof({name}));')
        lines += [
            f'printf("{name} {field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
            for field, *_ in structure._fields_
        ]
    directory = tmp_path_factory.mktemp("abi")
    source = directory / "layouts.c"
    source.write_text("#include <stdio.h>\n#include <emucxl.h>\nint main(void) {" + "\n".join(lines) + "}\n")
    subprocess.run(["cc", f"-I{INCLUDE}", source, "-o", directory / "layouts"], check=True, timeout=60)
    printed = subprocess.run([directory / "layouts"], capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, list[tuple[str, int, int]]] = {}
    for line in printed.stdout.splitlines():
        structure_name, field, offset, size = line.split()
        found.setdefault(structure_name, []).append((field, int(offset), int(size)))
    return found


@pytest.mark.parametrize("structure", STRUCTURES, ids=c_name)
def test_layout_is_the_compilers(
    structure: type[ctypes.Structure], compiled_layouts: dict[str, list[tuple[str, int, int]]]
) -> None:
    assert layout(structure) == compiled_layouts[c_name(structure)]


@pytest.mark.parametrize(
    "structure", [s for s in STRUCTURES if s._fields_[0][0] == "struct_bytes"], ids=c_name
)
def test_sized_structures_know_their_size(structure: type[ctypes.Structure]) -> None:
    assert structure().struct_bytes == ctypes.sizeof(structure)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMX_MAX_TIERS", abi.MAX_TIERS),
        ("EMX_NAME_BYTES", abi.NAME_BYTES),
        ("EMX_MAX_CURVE_POINTS", abi.MAX_CURVE_POINTS),
        ("EMX_CLOCK_VIRTUAL", abi.CLOCK_VIRTUAL),
        ("EMX_PROVIDER_REGION", abi.PROVIDER_REGION),
        ("EMX_WRITE", abi.WRITE),
        ("EMX_E_CANCELLED", len(EXCEPTIONS) - 1),
    ],
)
def test_constants_are_those_of_the_headers(name: str, value: int) -> None:
    headers = "".join(path.read_text() for path in (INCLUDE / "emucxl").glob("*.h"))
    found = re.search(rf"{name}\s*=?\s*(\d+)", headers)
    assert found is not None
    assert int(found[1]) == value


def test_the_loaded_library_has_every_call() -> None:
    library = abi.load()
    for name, (_, arguments) in abi.SIGNATURES.items():
        assert getattr(library, name).argtypes == arguments


def test_the_library_takes_two_words_of_static_thread_local_memory() -> None:
    """The loader keeps a few hundred bytes for all libraries that come late; one that needs more cannot be loaded."""
    elf = library_path().read_bytes()
    headers_offset, header_bytes, num_headers = struct.unpack_from("<Q", elf, 32) + struct.unpack_from(
        "<HH", elf, 54
    )
    sizes = []
    for i in range(num_headers):
        kind, *_, memory_bytes, _ = struct.unpack_from("<IIQQQQQQ", elf, headers_offset + i * header_bytes)
        sizes += [memory_bytes] if kind == 7 else []  # PT_TLS
    assert sum(sizes) <= 16
