"""Who is run: the systems by name, how each is started, and which of them are Interlace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.serve.interpreters import Interpreters
from interlace.errors import BenchError

STORED = "as stored"  # the blocks of a GGUF file, multiplied as they are
KEPT_BESIDE_STORED = "float32"  # the keys and values of such a model: a float, at the most
Kind = Literal["interlace", "hf", "vllm", "llamacpp"]
ModelForm = Literal["given", "directory", "gguf"]
KINDS: tuple[Kind, ...] = ("interlace", "hf", "vllm", "llamacpp")
MODEL_FORM: Mapping[Kind, ModelForm] = {
    "interlace": "given",
    "hf": "directory",
    "vllm": "directory",
    "llamacpp": "gguf",
}


@dataclass(frozen=True)
class System:
    """One column of the table: a program, its dtype, and its threads and ranks."""

    name: str
    kind: Kind
    dtype: str  # of the weights as run: "bfloat16", "float32" or "as stored"
    ranks: int = 1
    is_compiled: bool = False  # by torch.compile
    needs_own_python: bool = False  # another build of a peer: the Python that runs the others has not got it

    @property
    def is_peer(self) -> bool:
        return self.kind != "interlace"


@dataclass(frozen=True)
class Allowance:
    """The resources that systems may use, and the largest shapes they will be asked for."""

    threads: int
    max_model_len: int
    max_num_seqs: int = 64
    kv_cache_gb: int = 2
    device: str = "cpu"
    prefix_cache: bool = False  # systems keep what they have computed, for prompts that begin alike


SYSTEMS = (
    System("interlace-bf16", "interlace", "bfloat16"),
    System("interlace-bf16-tp2", "interlace", "bfloat16", ranks=2),
    System("interlace-f32", "interlace", "float32"),
    System("interlace-f32-tp2", "interlace", "float32", ranks=2),
    System("interlace-stored", "interlace", STORED),
    System("interlace-stored-tp2", "interlace", STORED, ranks=2),
    System("hf-f32", "hf", "float32"),
    System("hf-bf16", "hf", "bfloat16"),
    System("hf-f32-compiled", "hf", "float32", is_compiled=True),
    System("hf-bf16-compiled", "hf", "bfloat16", is_compiled=True),
    System("vllm-bf16", "vllm", "bfloat16"),
    System("vllm-f32", "vllm", "float32"),
    System("llamacpp", "llamacpp", STORED),
    System("llamacpp-no-amx", "llamacpp", STORED, needs_own_python=True),
)
BY_REQUEST = ("interlace-f32-tp2", "interlace-stored-tp2", "hf-f32-compiled", "hf-bf16-compiled", "vllm-f32")
ON_GPUS = ("interlace-bf16", "interlace-f32", "hf-f32", "hf-bf16", "hf-f32-compiled", "hf-bf16-compiled")
DEFAULT = tuple(system.name for system in SYSTEMS if system.name not in BY_REQUEST)


def choose(names: tuple[str, ...], pythons: Interpreters, device: str = "cpu") -> list[System]:
    """The systems asked for, in the order of the table; without names, the default ones that can run on `device`.

    Raises: BenchError for an unknown name, or a peer without a Python to run it.
    """
    known = {system.name: system for system in SYSTEMS if device == "cpu" or system.name in ON_GPUS}
    if unknown := [name for name in names if name not in known]:
        raise BenchError(f"got systems {unknown}; expected some of {list(known)}")
    if names:
        chosen = [system for system in SYSTEMS if system.name in names]
        if lacking := [system.name for system in chosen if pythons.of(system) is None]:
            raise BenchError(
                f"{lacking} need --peer-python: the Python of an environment that has them installed"
            )
        return chosen
    return [known[name] for name in DEFAULT if name in known and pythons.of(known[name]) is not None]


def model_form(system: System) -> ModelForm:
    """The form in which a system reads a model."""
    return "gguf" if system.dtype == STORED else MODEL_FORM[system.kind]


def load_arguments(system: System, model: str, machine: Allowance) -> dict[str, Any]:
    """The arguments of the request that has a worker load its model."""
    threads = max(1, machine.threads // system.ranks)
    shapes = {"max_model_len": machine.max_model_len, "max_num_seqs": machine.max_num_seqs}
    if system.kind == "interlace":
        weights = (
            {"dtype": "auto", "quantize": "stored"} if system.dtype == STORED else {"dtype": system.dtype}
        )
        return {
            "model": model,
            **weights,
            "tp": system.ranks,
            "threads": threads,
            "device": machine.device,
            "prefix_cache": machine.prefix_cache,
            **shapes,
        }
    if system.kind == "vllm":
        return {"model": model, "dtype": system.dtype, "prefix_caching": machine.prefix_cache, **shapes}
    if system.kind == "llamacpp":
        return {"model": model, "threads": threads}
    return {
        "model": model,
        "dtype": system.dtype,
        "threads": threads,
        "is_compiled": system.is_compiled,
        "device": machine.device,
    }


def environment(system: System, machine: Allowance) -> dict[str, str]:
    """Environment variables that a peer's own guide says to set."""
    if system.kind == "vllm":
        return {
            "VLLM_CPU_KVCACHE_SPACE": str(machine.kv_cache_gb),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{machine.threads - 1}",
            "VLLM_NO_USAGE_STATS": "1",
        }
    return {}


def remedy(system: System, error: str) -> str:
    """Advice for a peer's known failure, to be said after it; empty for any other."""
    if system.kind != "llamacpp" or "SIGILL" not in error:
        return ""
    return (
        "; its own AMX kernels may be at fault: build llama-cpp-python in another environment with CMAKE_ARGS="
        "'-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF' and name its Python by "
        "--peer-python llamacpp-no-amx=PYTHON"
    )
