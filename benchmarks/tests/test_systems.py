import pytest

from benchmarks.serve import systems
from benchmarks.serve.interpreters import Interpreters
from benchmarks.serve.systems import DEFAULT, SYSTEMS, Allowance, choose, load_arguments
from interlace.errors import BenchError

NO_PEERS, PEERS = Interpreters(), Interpreters("peers/bin/python")
MACHINE = Allowance(threads=2, max_model_len=2064)


def test_without_peers_interlace_runs_alone() -> None:
    chosen = choose((), NO_PEERS)
    assert chosen
    assert not any(system.is_peer for system in chosen)


def test_with_peers_every_default_system_runs() -> None:
    chosen = [system for system in SYSTEMS if system.name in DEFAULT and not system.needs_own_python]
    assert choose((), PEERS) == chosen


def test_an_unknown_system_is_named_with_the_known_ones() -> None:
    with pytest.raises(BenchError, match=r"got systems \['sglang'\]; expected some of .*vllm-bf16"):
        choose(("sglang", "interlace-bf16"), PEERS)


def test_a_peer_without_its_python_says_what_to_give() -> None:
    with pytest.raises(BenchError, match="--peer-python"):
        choose(("hf-f32",), NO_PEERS)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_ranks_times_threads_never_exceed_the_machine(system: systems.System) -> None:
    arguments = load_arguments(system, "model", MACHINE)
    assert True not in [arguments.get(name) for name in ("prefix_cache", "prefix_caching")]
    assert arguments["model"] == "model"
    assert arguments.get("tp", 1) * arguments.get("threads", 2) == MACHINE.threads


def test_weights_as_stored_are_read_from_a_gguf_file_by_all_who_multiply_them() -> None:
    stored = [system for system in SYSTEMS if system.dtype == systems.STORED]
    assert {system.kind for system in stored} == {"interlace", "llamacpp"}
    assert {systems.model_form(system) for system in stored} == {"gguf"}
    ours = load_arguments(stored[0], "model", MACHINE)
    assert (ours["dtype"], ours["quantize"]) == ("auto", "stored")


def test_transformers_is_compiled_by_request() -> None:
    assert not [system.name for system in choose((), PEERS) if system.is_compiled]
    (compiled,) = choose(("hf-f32-compiled",), PEERS)
    assert load_arguments(compiled, "model", MACHINE)["is_compiled"] is True


def test_vllm_is_bound_to_the_threads_it_may_use() -> None:
    (vllm,) = choose(("vllm-bf16",), PEERS)
    assert systems.environment(vllm, MACHINE)["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"


def test_a_peer_may_have_a_python_of_its_own() -> None:
    pythons = Interpreters.parse(["all", "llamacpp=its", "vllm-bf16=another"], ["llamacpp", "vllm-bf16"])
    found = {system.name: pythons.of(system) for system in SYSTEMS if system.is_peer}
    assert found["hf-f32"] == found["vllm-f32"] == "all"
    assert (found["llamacpp"], found["vllm-bf16"]) == ("its", "another")


def test_another_build_of_a_peer_runs_only_where_its_python_is_named() -> None:
    assert "llamacpp-no-amx" not in [system.name for system in choose((), PEERS)]
    pythons = Interpreters("peers", {"llamacpp-no-amx": "plain"})
    (plain,) = choose(("llamacpp-no-amx",), pythons)
    assert pythons.of(plain) == "plain"
    with pytest.raises(BenchError, match=r"\['llamacpp-no-amx'\] need --peer-python"):
        choose(("llamacpp-no-amx",), PEERS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["gpt=python"], "NAME one of"),
        (["a", "b"], "two --peer-python for all peers"),
        (["hf=a", "hf=b"], "for hf"),
    ],
)
def test_wrong_pythons_are_told(values: list[str], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        Interpreters.parse(values, ["hf"])


def test_on_a_gpu_only_those_take_part_that_can() -> None:
    chosen = choose((), PEERS, "cuda")
    assert [system.name for system in chosen] == ["interlace-bf16", "interlace-f32", "hf-f32", "hf-bf16"]
    with pytest.raises(
        BenchError, match=r"got systems \['llamacpp'\]; expected some of \['interlace-bf16', "
    ):
        choose(("llamacpp",), PEERS, "cuda")
    on_gpu = Allowance(threads=2, max_model_len=2064, device="cuda")
    assert {load_arguments(system, "model", on_gpu)["device"] for system in chosen} == {"cuda"}
