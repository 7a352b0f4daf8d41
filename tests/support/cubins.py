"""Kernels compiled for a GPU that need not be there, and what the compiler made of them."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = 90  # compute capability 9.0
LAUNCH = (
    "num_warps",
    "num_stages",
    "enable_fp_fusion",
)  # options of the compiler; the others are the kernel's own
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"  # they come with triton
REGISTERS_PER_SM = 65536  # what a CTA can have if it is alone
SHARED_BYTES = {
    80: 163 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
}  # of a CTA: CUDA C++ programming guide, table of compute capabilities
SMALLEST_SHARED_BYTES = 99 * 1024  # of sm_86 and sm_89, which run what is compiled for sm_80
BLACKWELL = 100  # its matrix units take products of whole warp groups, and leave sums in memory of their own
CAPABILITIES = [pytest.param(80, marks=pytest.mark.slow), 90]
SINCE_HOPPER = [HOPPER, pytest.param(BLACKWELL, marks=pytest.mark.slow)]
ALIGNMENT = 16  # bytes of a pointer, or what a number is a multiple of: Triton asks for no more


@dataclass(frozen=True)
class Compiled:
    """A kernel's code."""

    ptx: str
    sass: str
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    dynamic_shared_bytes: int  # what a launch asks for beside it
    threads: int

    def count_ptx(self, pattern: str) -> int:
        return len(re.findall(pattern, self.ptx))

    def count_sass(self, pattern: str) -> int:
        """Instructions whose opcode and modifiers match `pattern` whole."""
        return sum(number for opcode, number in self.opcodes.items() if re.fullmatch(pattern, opcode))

    def can_avoid(self, avoided: str, goal: str) -> bool:
        """Whether control can get from the first instruction to one like `goal` past none like `avoided`.

        Both are of opcodes, as for `count_sass`. A predicated instruction is taken to run.
        """
        return can_avoid(self.sass, avoided, goal)

    @property
    def opcodes(self) -> Counter[str]:
        # "        /*0a30*/              @P0 LDG.E.128 R4, desc[UR6][R2.64] ;"
        return Counter(
            re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", self.sass, re.MULTILINE)
        )


Compile = Callable[..., Compiled]  # `compile_kernel`, but for the directory


def assert_holds(code: Compiled, capability: int) -> None:
    """No spills, and a CTA that an SM has room for."""
    assert code.stack_bytes == code.local_bytes == 0
    assert code.count_sass(r"(LDL|STL)(\..*)?") == 0
    assert code.registers * code.threads <= REGISTERS_PER_SM
    assert code.dynamic_shared_bytes <= min(SHARED_BYTES[capability], SMALLEST_SHARED_BYTES)


def some_fast(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Parameters of a test: each is compiled for seconds, so most are slow."""
    return [pytest.param(each, marks=[] if each in fast else [pytest.mark.slow]) for each in values]


LABEL = re.compile(r"^(\.L\w+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?(P\w+) )?([A-Z][\w.]*)(.*);")
TARGET = re.compile(r"`\((\.L\w+)\)")


def can_avoid(sass: str, avoided: str, goal: str) -> bool:
    """See `Compiled.can_avoid`."""
    code: list[tuple[str | None, str, str]] = []  # predicate, opcode and operands of each instruction
    places: dict[str, int] = {}
    for line in sass.splitlines():
        if label := LABEL.match(line):
            places[label[1]] = len(code)
        elif found := INSTRUCTION.match(line):
            code.append((found[1], found[2], found[3]))
    seen: set[int] = set()
    left = [0]
    while left:
        at = left.pop()
        if at in seen or at >= len(code):
            continue
        seen.add(at)
        predicate, opcode, operands = code[at]
        if re.fullmatch(avoided, opcode):
            continue
        if re.fullmatch(goal, opcode):
            return True
        kind, target = opcode.partition(".")[0], TARGET.search(operands)
        assert kind not in ("BRX", "JMX", "CALL", "RET"), f"where does {opcode} go?"
        if kind in ("BRA", "JMP"):
            assert target is not None
            left.append(places[target[1]])
            # The condition of a branch may also stand before its target, and `.DIV` is one of its own.
            if predicate is None and opcode in ("BRA", "BRA.U") and operands.strip().startswith("`"):
                continue
        elif kind == "EXIT" and predicate is None:
            continue
        left.append(at + 1)
    return False


def compile_kernel(
    kernel: Any,
    types: dict[str, str],
    options: dict[str, Any],
    directory: Path,
    capability: int = HOPPER,
    multiples: Collection[str] = (),
) -> Compiled:
    """`types` are those of the arguments, by name; `options` what a launch would pass beside them.

    Pointers are aligned, as torch's are, and the numbers named in `multiples` are multiples of as much.
    """
    launch = {name: options[name] for name in LAUNCH if name in options}
    constants = {name: value for name, value in options.items() if name not in launch}
    attributes = {
        (place,): [["tt.divisibility", ALIGNMENT]]
        for place, (name, kind) in enumerate(types.items())
        if kind.startswith("*") or name in multiples
    }
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    cubin = directory / f"{kernel.__name__}.cubin"
    cubin.write_bytes(made.asm["cubin"])
    usage = _run("cuobjdump", "--dump-resource-usage", str(cubin))
    return Compiled(
        ptx=made.asm["ptx"],
        sass=_run("nvdisasm", "-c", str(cubin)),
        registers=_number(usage, "REG"),
        stack_bytes=_number(usage, "STACK"),
        local_bytes=_number(usage, "LOCAL"),
        shared_bytes=_number(usage, "SHARED"),
        dynamic_shared_bytes=made.metadata.shared,
        threads=32 * launch["num_warps"],
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _number(usage: str, name: str) -> int:
    found = re.search(rf"{name}:(\d+) ", usage.partition("Function")[2])
    assert found is not None, usage
    return int(found[1])
