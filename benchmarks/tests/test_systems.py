import pytest

from benchmarks.serve import systems
from benchmarks.serve.systems import DEFAULT, SYSTEMS, Allowance, choose, load_arguments
from interlace.errors import BenchError

MACHINE = Allowance(threads=2, max_model_len=2064)


def test_without_peers_interlace_runs_alone() -> None:
    chosen = choose((), peers_available=False)
    assert chosen
    assert not any(system.is_peer for system in chosen)


def test_with_peers_every_default_system_runs() -> None:
    assert tuple(system.name for system in choose((), peers_available=True)) == DEFAULT


def test_an_unknown_system_is_named_with_the_known_ones() -> None:
    with pytest.raises(BenchError, match=r"got systems \['sglang'\]; expected some of .*vllm-bf16"):
        choose(("sglang", "interlace-bf16"), peers_available=True)


def test_a_peer_without_its_python_says_what_to_give() -> None:
    with pytest.raises(BenchError, match="--peer-python"):
        choose(("hf-f32",), peers_available=False)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_ranks_times_threads_never_exceed_the_machine(system: systems.System) -> None:
    arguments = load_arguments(system, "model", MACHINE)
    assert arguments["model"] == "model"
    assert arguments.get("tp", 1) * arguments.get("threads", 2) == MACHINE.threads


def test_vllm_is_bound_to_the_threads_it_may_use() -> None:
    (vllm,) = choose(("vllm-bf16",), peers_available=True)
    assert systems.environment(vllm, MACHINE)["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
