"""`make bench weave` with `--end-to-end`, `--hosts` or `--device cuda`: the engine over two ranks, woven and not.

Both engines live at the same time, each stopped while the other has its turn. End to end, the ranks are on this host
and the link between them is *modelled*; with hosts they are in two network namespaces, joined by a cable that the
kernel shapes where it can: bytes really travel, over TCP. On CUDA each rank has a GPU, or they share one as threads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.harness.namespaces import (
    NamespacesNotPermitted,
    NetworkHost,
    torchrun_variables,
    two_namespaces,
)
from benchmarks.harness.worker import Worker, turn
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of
from interlace.cli.bench.workload import WARM_UP, Generated, ServeWorkload, longest_sequence, whole_blocks
from interlace.environment import subprocess_environment
from interlace.errors import BenchError
from interlace.models.sources import load_model, resolve
from tokenweave.link import LinkSpec

LATENCY = (512, 2048, 4096)  # tokens of one prompt: until its first token
THROUGHPUT = ServeWorkload("job", 16, 512, 1)  # many prompts, nothing but their prefill
MIXED = ServeWorkload("job", 16, 256, 32)  # prefill and decode in the same batches
QUICK = (ServeWorkload("prefill", 1, 256, 1), ServeWorkload("job", 4, 128, 1))
FULL = (*(ServeWorkload("prefill", 1, tokens, 1) for tokens in LATENCY), THROUGHPUT, MIXED)
OFF, ON, ALWAYS = "weave never", "weave auto", "weave always"
MODES = {OFF: "never", ON: "auto", ALWAYS: "always"}
# Of the prompts: on CPUs a row has the same bits in whatever batch it is; on GPUs a product rounds by its size.
LEAST_SAME = {"cpu": 1.0, "cuda": 0.5}
END_S = 30.0
FIRST_PORT = 29480


@dataclass(frozen=True)
class EndToEndOptions:
    """The case of one run. `link` is modelled on one host; between two hosts its bandwidth is that of the cable."""

    model: str = "smollm2"
    dtype: str = "auto"
    link: str = "0.25GB/s,5us"
    between_hosts: bool = False
    device: str = "cpu"
    rounds: int = 5
    is_quick: bool = False

    def __post_init__(self) -> None:
        if self.between_hosts and self.device != "cpu":
            raise BenchError(
                f"got device={self.device!r} between hosts; expected cpu: leave out --device or --hosts"
            )

    @property
    def name(self) -> str:
        """The name of the record."""
        if self.device != "cpu":
            return f"weave-{self.device}"
        return "weave-hosts" if self.between_hosts else "weave-end-to-end"

    @property
    def workloads(self) -> tuple[ServeWorkload, ...]:
        return QUICK if self.is_quick else FULL


@dataclass(frozen=True)
class EndToEndFigures:
    """Seconds of each workload, by mode."""

    workload: ServeWorkload
    seconds: dict[str, Samples]

    def ratio(self, mode: str) -> Samples:
        return self.seconds[mode].over(self.seconds[OFF])

    def rate(self, mode: str) -> float:
        """Tokens in and out, per second."""
        tokens = self.workload.batch * (self.workload.prompt_tokens + self.workload.output_tokens)
        return tokens / self.seconds[mode].median


def measure(options: EndToEndOptions, progress: Progress | None = None) -> tuple[list[EndToEndFigures], str]:
    """Every workload, and what joined the ranks.

    Raises:
        BenchError: the engines' answers differ, an engine fails, or there are no namespaces here.
    """
    vocab_size = load_model(options.model).config.vocab_size
    with ExitStack() as stack:
        try:
            joined = stack.enter_context(_joined(options))
        except NamespacesNotPermitted as error:
            raise BenchError(f"two hosts cannot be had here: {error}") from None
        workers = {mode: stack.enter_context(_engine(options, mode, joined)) for mode in MODES}
        found = []
        for place, workload in enumerate(options.workloads):
            _check(workers, workload, vocab_size, LEAST_SAME[options.device])
            measures = {
                mode: partial(_seconds, worker, workload, vocab_size) for mode, worker in workers.items()
            }
            part = part_of(progress, place, len(options.workloads))
            found.append(EndToEndFigures(workload, interleaved(measures, options.rounds, part)))
        return found, joined.text


def report(options: EndToEndOptions, found: list[EndToEndFigures], joined: str) -> Report:
    """One row for each workload."""
    return Report(
        name=options.name,
        title=f"{options.model}, two ranks {joined}: seconds",
        columns=("workload", *MODES, "auto/never", "always/never", "tokens/s never", "tokens/s auto"),
        rows=tuple(
            (
                each.workload.name,
                *(each.seconds[mode].text(3) for mode in MODES),
                each.ratio(ON).text(3),
                each.ratio(ALWAYS).text(3),
                f"{each.rate(OFF):,.0f}",
                f"{each.rate(ON):,.0f}",
            )
            for each in found
        ),
        notes=(f"medians of {options.rounds} interleaved rounds (quartiles); prefill: to the first token",),
        results={
            "options": asdict(options),
            "joined": joined,
            "workloads": [
                {
                    **asdict(each.workload),
                    "name": each.workload.name,
                    "seconds": {mode: samples.to_json("s") for mode, samples in each.seconds.items()},
                    "auto_over_never": each.ratio(ON).to_json("ratio"),
                    "always_over_never": each.ratio(ALWAYS).to_json("ratio"),
                    "tokens_per_s": {mode: each.rate(mode) for mode in MODES},
                }
                for each in found
            ],
        },
    )


@dataclass(frozen=True)
class _Joined:
    """The connection between the ranks."""

    text: str
    hosts: tuple[NetworkHost, NetworkHost] | None = None


@contextmanager
def _joined(options: EndToEndOptions) -> Iterator[_Joined]:
    if options.device != "cpu":
        is_one = communicator_on_gpus() == "thread"
        yield _Joined("as threads of one process, on one GPU" if is_one else "with a GPU each")
        return
    if not options.between_hosts:
        yield _Joined(f"of one thread, shared memory behind a link of {options.link} (modelled)")
        return
    bandwidth_gbps = LinkSpec.parse(options.link).bandwidth_gbps
    with two_namespaces() as hosts:
        shaped = f"shaped to {bandwidth_gbps:g} GB/s each way"
        try:
            for host in hosts:
                host.shape(bandwidth_gbps)
        except NamespacesNotPermitted as error:
            shaped = f"not shaped ({error})"
        yield _Joined(f"of one thread, gloo over TCP between two network namespaces, {shaped}", hosts)


@contextmanager
def _engine(options: EndToEndOptions, mode: str, joined: _Joined) -> Iterator[Worker]:
    """An engine that has generated once, stopped."""
    arguments: dict[str, Any] = {
        "model": str(resolve(options.model)),
        "dtype": options.dtype,
        "tp": 2,
        "threads": 1,
        "weave": MODES[mode],
        "max_num_batched_tokens": 4096,
        "max_model_len": whole_blocks(longest_sequence(options.workloads)),
        "kv_cache_gb": 0.5,
    }
    with ExitStack() as stack:
        if joined.hosts is None:
            on_gpus = {"device": options.device, "communicator": communicator_on_gpus()}
            arguments |= {"device": "cpu", "link": options.link} if options.device == "cpu" else on_gpus
            worker = Worker(sys.executable, "interlace")
            stack.callback(worker.close)
        else:
            arguments["communicator"] = "torch"
            worker = _on_hosts(stack, joined.hosts, FIRST_PORT + list(MODES).index(mode), arguments)
        worker.ask("load", **arguments)
        worker.ask("generate", prompts=WARM_UP.prompts(1000, 0), max_tokens=WARM_UP.output_tokens)
        worker.pause()
        yield worker


def communicator_on_gpus() -> str:
    """The channel of two ranks: what the engine picks, or threads where they have to share a GPU."""
    import torch

    return "auto" if torch.cuda.device_count() > 1 else "thread"


def _on_hosts(
    stack: ExitStack, hosts: tuple[NetworkHost, NetworkHost], port: int, arguments: Mapping[str, Any]
) -> Worker:
    """Rank 1 on the second host, which serves; rank 0 on the first, which is asked."""
    program = (
        "import json, sys; from interlace.engine.config import EngineConfig;"
        "from interlace.engine.ranks.launch import start; start(EngineConfig(**json.loads(sys.argv[1])))"
    )
    worker = Worker(
        sys.executable, "interlace", torchrun_variables(0, 2, hosts[0], port), prefix=hosts[0].prefix
    )
    stack.callback(worker.close)
    follower = subprocess.Popen(
        [*hosts[1].prefix, sys.executable, "-P", "-c", program, json.dumps(dict(arguments))],
        env=subprocess_environment(**torchrun_variables(1, 2, hosts[0], port)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    stack.callback(follower.wait, END_S)
    stack.callback(follower.kill)  # before rank 0 goes: it would complain
    return worker


def _check(
    workers: Mapping[str, Worker], workload: ServeWorkload, vocab_size: int, least_same: float
) -> None:
    """The warm-up: the engines' greedy answers begin with the same token, for at least so many of the prompts.

    Where that is all of them, the whole answers are the same.
    """
    answers = {mode: _generate(worker, workload, vocab_size).tokens for mode, worker in workers.items()}
    for mode, tokens in answers.items():
        pairs = list(zip(tokens, answers[OFF], strict=True))
        same = sum(own[0] == others[0] for own, others in pairs) / len(pairs)
        if same < least_same or (least_same == 1.0 and tokens != answers[OFF]):
            raise BenchError(f"{workload.name}: {mode} gives other tokens than {OFF}; nothing was timed")


def _seconds(worker: Worker, workload: ServeWorkload, vocab_size: int) -> float:
    run = _generate(worker, workload, vocab_size)
    return run.first_s if workload.measure == "prefill" else run.total_s


def _generate(worker: Worker, workload: ServeWorkload, vocab_size: int) -> Generated:
    with turn(worker):
        worker.ask("generate", prompts=WARM_UP.prompts(vocab_size, 1), max_tokens=WARM_UP.output_tokens)
        prompts = workload.prompts(vocab_size, seed=0)
        run = Generated.from_reply(worker.ask("generate", prompts=prompts, max_tokens=workload.output_tokens))
    workload.check(run)
    return run
