"""A model of memory instead of a model: ranks whose cache remembers what was written where, and a byte tokenizer."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interlace.engine.cache.fetching import Chooser, fetch_all
from interlace.engine.cache.traffic import PassFetch, TierTraffic
from interlace.engine.chunk import StreamChunk
from interlace.engine.config import EngineConfig
from interlace.engine.engine import Engine
from interlace.engine.output import RequestOutput
from interlace.engine.sampling_params import SamplingParams
from interlace.models.batch import ForwardBatch
from interlace.models.moves import LOCAL, Move, MoveKind
from tokenweave.communicators.device_wait import DeviceEvent
from tokenweave.sampling import mix64
from tokenweave.trace import Trace

Entry = tuple[int, int, int]  # position, token, state
EOS = 256
VOCAB_SIZE = 257  # every byte, and the end


def chain(state: int, token: int) -> int:
    """The state after `token`: it stands for everything that attention could have seen up to there."""
    return mix64(state * 31 + token + 1)


def state_of(tokens: Sequence[int]) -> int:
    state = 0
    for token in tokens:
        state = chain(state, token)
    return state


def logits_after(state: int) -> np.ndarray:
    """Logits (VOCAB_SIZE,) float32: a pure function of the prefix. Most of the mass is on a few tokens."""
    return np.random.default_rng(state).standard_normal(VOCAB_SIZE).astype(np.float32) * 4


def greedy_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """Returns the tokens that a greedy request generates when nothing ends it early."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_after(state_of(tokens)).argmax()))
    return tokens[len(prompt) :]


@dataclass(frozen=True)
class FakeModelFacts:
    vocab_size: int = VOCAB_SIZE
    eos_token_ids: tuple[int, ...] = (EOS,)

    def length_kind(self, num_prompt: int) -> int:
        return 0


class ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(b"" if token_id == EOS else bytes([token_id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    def __init__(self) -> None:
        self.end_token_ids: tuple[int, ...] = (EOS,)
        self.special_tokens = {"<end>": EOS}

    def special_token_id(self, text: str) -> int | None:
        return self.special_tokens.get(text)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return bytes(token for token in ids if token != EOS).decode(errors="replace")

    def stream(self, skip_special: bool = True, prompt: Sequence[int] = ()) -> ByteDecoder:
        return ByteDecoder()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **arguments: Any
    ) -> list[int]:
        given = "".join(f"{name}={value} " for name, value in sorted(arguments.items()))
        return self.encode(
            given + "".join(f"{message.get('role')}: {message.get('content')}\n" for message in messages)
        )


class FakeRanks:
    """Executes batches on a cache of (position, token, state) entries, and checks every read and write.

    A read of a slot that was not written by this very prefix breaks the chain of states and fails the test.
    """

    def __init__(
        self, num_blocks: int = 64, max_model_len: int = 128, tier_capacities: Sequence[int] = ()
    ) -> None:
        """Fetches of the passes that `fails` names fail, and what they were to bring is not there."""
        self.num_blocks = num_blocks
        self.tier_capacities = tuple(tier_capacities)
        self.is_storing = False
        self.fetch_chooser: Chooser = fetch_all
        self.slots: dict[tuple[int, int], list[Entry | None]] = {}  # of tiers, by place and index
        self.failed_blocks: set[int] = set()
        self.tier_traffic = [TierTraffic() for _ in tier_capacities]
        self.fails: Callable[[Move], bool] = lambda move: False
        self.moves: list[Move] = []
        self.max_model_len = max_model_len
        self.tokenizer = ByteTokenizer()
        self.model_config = FakeModelFacts()
        self.sampling_defaults: dict[str, Any] = {}
        self.pool = None
        self.device: torch.device | None = None
        self.cache: dict[int, Entry] = {}
        self.batches: list[ForwardBatch] = []
        self.failure: Exception | None = None
        self.closed = False
        self.is_traced = False

    @property
    def fetched(self) -> PassFetch:
        return PassFetch(frozenset(self.failed_blocks))

    def wait_for(self, event: DeviceEvent) -> None:
        raise AssertionError("nothing here has events")

    def execute(self, batch: ForwardBatch, sampled: Tensor | None = None) -> Tensor:
        if batch.is_fed:
            assert sampled is not None, "tokens of a pass that gave none"
            ids = [
                token if token >= 0 else max(0, int(sampled[-1 - token]))
                for token in batch.token_ids.tolist()
            ]
            batch = replace(batch, token_ids=torch.tensor(ids, dtype=torch.int32))
        if self.failure is not None:
            raise self.failure
        self.batches.append(batch)
        assert len(set(batch.slots.tolist())) == batch.num_tokens, "two tokens written to one slot"
        moves = [Move(MoveKind(row[0]), *row[1:]) for row in batch.moves.tolist()]
        self.moves += moves
        self._make_ready(moves)
        states = [state for s in range(batch.num_seqs) for state in self._run_sequence(batch, s)]
        self._store(moves)
        rows = [logits_after(states[row]) for row in batch.logit_rows.tolist()]
        return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), VOCAB_SIZE))

    def _run_sequence(self, batch: ForwardBatch, s: int) -> list[int]:
        start, end = batch.query_start[s : s + 2].tolist()
        seq_len = int(batch.seq_lens[s])
        table = batch.block_tables[s].tolist()
        slot_of = [table[p // 16] * 16 + p % 16 for p in range(seq_len)]
        assert batch.positions[start:end].tolist() == list(range(seq_len - (end - start), seq_len))
        assert batch.slots[start:end].tolist() == slot_of[seq_len - (end - start) :]
        assert max(table) < self.num_blocks
        state = 0
        for position in range(seq_len - (end - start)):
            if slot_of[position] // 16 in self.failed_blocks:
                return [0] * (
                    end - start
                )  # it reads what is not there, and nobody may look at what comes of it
            written_at, token, written_state = self.cache[slot_of[position]]
            state = chain(state, token)
            assert (written_at, written_state) == (position, state), "read of a slot another sequence wrote"
        states = []
        for row in range(start, end):
            token = int(batch.token_ids[row])
            state = chain(state, token)
            self.cache[int(batch.slots[row])] = (int(batch.positions[row]), token, state)
            states.append(state)
        return states

    def _make_ready(self, moves: list[Move]) -> None:
        self.failed_blocks = set()
        for move in moves:
            if move.kind is MoveKind.EVICT:
                self.slots[move.to_place, move.to_index] = self._entries(move.from_place, move.from_index)
        fetches = [move for move in moves if move.kind is MoveKind.FETCH]
        for move in fetches:
            assert move.from_index < self.tier_capacities[move.from_place - 1]
            entries = self._entries(move.from_place, move.from_index)
            is_lost = self.fails(move)
            if is_lost:
                self.failed_blocks.add(move.to_index)
            for offset, entry in enumerate(entries):
                self.cache.pop(move.to_index * 16 + offset, None)
                if entry is not None and not is_lost:
                    self.cache[move.to_index * 16 + offset] = entry

    def _store(self, moves: list[Move]) -> None:
        for move in moves:
            if move.kind is MoveKind.STORE:
                self.slots[move.to_place, move.to_index] = self._entries(move.from_place, move.from_index)

    def _entries(self, place: int, index: int) -> list[Entry | None]:
        if place == LOCAL:
            return [self.cache.get(index * 16 + offset) for offset in range(16)]
        return self.slots[place, index]

    def describe(self) -> dict[str, object]:
        return {"ranks": []}

    def start_trace(self) -> None:
        self.is_traced = True

    def end_trace(self) -> Trace:
        self.is_traced = False
        return Trace(())

    def close(self) -> None:
        self.closed = True


def make_engine(ranks: FakeRanks | None = None, **options: Any) -> Engine:
    ranks = ranks or FakeRanks()
    tiers = [f"tier{number}:1GB" for number in range(len(ranks.tier_capacities))]
    return Engine(ranks, EngineConfig.from_options("fake", {"kv_tiers": tiers, **options}))


def run_all(engine: Engine) -> tuple[dict[str, RequestOutput], dict[str, list[StreamChunk]]]:
    """Steps until nothing is left; the outputs and all chunks, by request id."""
    outputs: dict[str, RequestOutput] = {}
    chunks: dict[str, list[StreamChunk]] = {}
    while engine.has_unfinished:
        for chunk in engine.step():
            chunks.setdefault(chunk.request_id, []).append(chunk)
            if chunk.output is not None:
                outputs[chunk.request_id] = chunk.output
        engine.check()
    return outputs, chunks


def run_alone(prompt: Sequence[int], params: SamplingParams, max_model_len: int = 128) -> RequestOutput:
    """The request on an engine of its own, with more room than it can use."""
    engine = make_engine(FakeRanks(max_model_len=max_model_len))
    engine.add_request("alone", prompt, params)
    return run_all(engine)[0]["alone"]
