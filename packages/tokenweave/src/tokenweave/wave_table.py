"""The wave table: how long the stages of one model's layers take on this machine, against the number of tokens.

A matrix product works through its rows in tiles, so its time grows in steps ("waves"): the table has a point on each
side of a step where steps matter. It is kept as JSON, one file for each machine and shape, and is read again silently.

Times are those of the slowest rank, measured while all ranks of the host computed. What one attention takes depends on
its context too: see `AttentionTimes`. Where layers differ (a window in some, experts in some), each kind of layer has
its own times of the stages that differ.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenweave.errors import TuneError

FORMAT = 3
CURVES = ("projections", "embed", "logits", "reduce")  # of all layers alike, or of none
_log = logging.getLogger("tokenweave")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankShape:
    """The share of a model that one rank has."""

    heads: int
    kv_heads: int
    vocab_rows: int


@dataclass(frozen=True)
class MlpShape:
    """A layer's MLP, or its experts, on all ranks."""

    columns: tuple[int, ...]  # of each rank; of each expert alike
    num_experts: int = 0  # 0: a dense MLP
    experts_per_token: int = 0
    shared_columns: tuple[
        int, ...
    ] = ()  # of each rank, of an expert that all tokens run through; (): there is none


@dataclass(frozen=True)
class LayerKind:
    """The sizes that a layer's times depend on, where the layers of one model differ."""

    mlp: MlpShape
    window: int = 0  # keys a token sees; 0: all


@dataclass(frozen=True)
class TableKey:
    """The facts that the times of a table depend on. Tables with equal keys are interchangeable."""

    machine: str  # processor and cores
    kernels: str  # backend and instruction set, and the format of weights in blocks
    library: str  # its version and build
    dtype: str
    threads: int  # of each rank
    hidden_size: int
    head_dim: int
    kinds: tuple[LayerKind, ...]  # that the model's layers are of, each once
    ranks: tuple[RankShape, ...]

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise TuneError(f"got kinds of layers {self.kinds}; expected at least one, and each once")
        for kind in self.kinds:
            if len(kind.mlp.columns) != len(self.ranks):
                raise TuneError(
                    f"got MLP columns {kind.mlp.columns} of {len(self.ranks)} ranks; expected one of each"
                )

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.file_prefix}{digest[:16]}.json"

    @property
    def file_prefix(self) -> str:
        """The beginning of the names of tables of such sizes."""
        return f"{len(self.ranks)}-ranks-{self.hidden_size}-{self.dtype}-"

    @property
    def qkv_share(self) -> float:
        """Query, key and value's share of the arithmetic of an attention's projections; the rest is the output's."""
        heads = sum(rank.heads for rank in self.ranks)
        kv_heads = sum(rank.kv_heads for rank in self.ranks)
        return (heads + 2 * kv_heads) / (2 * heads + 2 * kv_heads)


@dataclass(frozen=True)
class Curve:
    """Seconds at some token counts, ascending; straight lines between them, and on from the last in proportion."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in pairwise(self.tokens))
        if not self.tokens or len(self.tokens) != len(self.seconds) or self.tokens[0] < 1 or not ascending:
            raise TuneError(
                f"got a curve at {self.tokens}; expected ascending token counts and a time for each"
            )
        if not all(0 <= value < float("inf") for value in self.seconds):
            raise TuneError(f"got times {self.seconds}; expected finite numbers of seconds from 0 on")

    def __call__(self, num_tokens: int) -> float:
        """Exact at the measured counts; 0 for no tokens."""
        tokens, seconds = self.tokens, self.seconds
        if num_tokens <= 0:
            return 0.0
        after = bisect_left(tokens, num_tokens)
        if after == len(tokens):
            return seconds[-1] * num_tokens / tokens[-1]
        if tokens[after] == num_tokens or after == 0:
            return seconds[after]
        share = (num_tokens - tokens[after - 1]) / (tokens[after] - tokens[after - 1])
        return seconds[after - 1] + share * (seconds[after] - seconds[after - 1])


@dataclass(frozen=True)
class AttentionTimes:
    """Attention over cached keys: for so many new tokens of a sequence, a time plus a time for each pair.

    A pair is a new token and a key that it sees.
    """

    queries: tuple[int, ...]
    floor_s: tuple[float, ...]
    pair_s: tuple[float, ...]

    def __post_init__(self) -> None:
        Curve(self.queries, self.floor_s)
        Curve(self.queries, self.pair_s)

    @classmethod
    def fit(cls, samples: Iterable[tuple[int, tuple[float, float], tuple[float, float]]]) -> AttentionTimes:
        """From (new tokens, (pairs, seconds), (more pairs, seconds)): the line through both points of each."""
        lines = [(queries, *_line(few, many)) for queries, few, many in sorted(samples)]
        return cls(*(tuple(column) for column in zip(*lines, strict=True)))

    def __call__(self, num_new: Floats, pairs: Floats) -> float:
        """The time of a batch of sequences with `num_new` new tokens and `pairs` pairs each, both (num_seqs,)."""
        floor_s = np.interp(num_new, self.queries, self.floor_s)
        pair_s = np.interp(num_new, self.queries, self.pair_s)
        return float((floor_s + pair_s * pairs).sum())


@dataclass(frozen=True)
class Pace:
    """The time of a whole pass over that of its stages alone, at some token counts; lines between, level outside.

    Stages are timed alone and at their best. In a pass they follow one another for long enough to slow the processor's
    clock, or to meet what the other ranks do to shared caches, and how much differs between processors.
    """

    tokens: tuple[int, ...] = (1,)
    factors: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        Curve(self.tokens, self.factors)
        if not all(factor > 0 for factor in self.factors):
            raise TuneError(f"got factors {self.factors}; expected positive ones")

    def __call__(self, num_tokens: int) -> float:
        return float(np.interp(num_tokens, self.tokens, self.factors))


def _line(few: tuple[float, float], many: tuple[float, float]) -> tuple[float, float]:
    """Floor and slope, neither negative: where noise would have it so, the other alone passes through a point."""
    if many[1] <= few[1] or many[0] <= few[0]:  # the latter with a window of one key
        return min(few[1], many[1]), 0.0  # noise only adds: the smaller time is the better
    slope = (many[1] - few[1]) / (many[0] - few[0])
    floor = few[1] - slope * few[0]
    return (floor, slope) if floor >= 0 else (0.0, many[1] / many[0])


@dataclass(frozen=True)
class KindTimes:
    """Times of the stages that differ between kinds of layers."""

    attention: AttentionTimes
    mlp: Curve


@dataclass(frozen=True)
class WaveTable:
    """Times of one layer's stages. `is_measured` is False where they were worked out from FLOPs and bytes."""

    key: TableKey
    projections: (
        Curve  # query, key, value, rotary embedding and output projection: attention but for the keys
    )
    kinds: tuple[KindTimes, ...]  # of each of the key's kinds
    embed: Curve
    logits: Curve  # against the number of rows whose logits are wanted
    reduce: Curve  # all-reduce, residual add and norm, without a link
    switch_s: float  # what handing a step from lane to lane adds to each transfer of a woven plan
    wake_s: float  # what waking up adds to a wait for a link
    pace: Pace = Pace()
    is_measured: bool = True

    def __post_init__(self) -> None:
        if len(self.kinds) != len(self.key.kinds):
            raise TuneError(
                f"got times of {len(self.kinds)} kinds of layers; expected {len(self.key.kinds)}, as in the key"
            )

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> WaveTable:
        """Raises TuneError unless `found` is what `to_json` gives."""
        if found.get("format") != FORMAT:
            raise TuneError(f"it has format {found.get('format')!r}; expected {FORMAT}")
        try:
            return cls(
                key=_key_from_json(found["key"]),
                kinds=tuple(
                    KindTimes(AttentionTimes(**_tuples(kind["attention"])), _curve_from_json(kind["mlp"]))
                    for kind in found["kinds"]
                ),
                switch_s=float(found["switch_s"]),
                wake_s=float(found["wake_s"]),
                is_measured=bool(found["is_measured"]),
                pace=Pace(*(tuple(found["pace"][axis]) for axis in ("tokens", "factors"))),
                **{name: _curve_from_json(found[name]) for name in CURVES},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TuneError(f"it is damaged ({type(error).__name__}: {error})") from error

    def save(self, directory: Path) -> Path:
        """Write it below `directory`, whole or not at all; returns the file."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / self.key.file_name
        handle, name = tempfile.mkstemp(dir=directory, prefix=".", suffix=".json")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self.to_json(), file, indent=1)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
        return path


def _key_from_json(found: Mapping[str, Any]) -> TableKey:
    kinds = tuple(LayerKind(MlpShape(**_tuples(kind["mlp"])), kind["window"]) for kind in found["kinds"])
    return TableKey(**{**found, "kinds": kinds, "ranks": tuple(RankShape(**rank) for rank in found["ranks"])})


def _curve_from_json(found: Mapping[str, Any]) -> Curve:
    return Curve(tuple(found["tokens"]), tuple(found["seconds"]))


def _tuples(found: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where values have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def load_table(directory: Path, key: TableKey) -> WaveTable | None:
    """The table of `key` below `directory`; None where there is none. One that cannot be used is ignored, and told."""
    path = directory / key.file_name
    try:
        table = WaveTable.from_json(json.loads(path.read_text()))
        if table.key != key:
            raise TuneError("it is of another machine or model")
    except FileNotFoundError:
        _tell_of_others(directory, key)
        return None
    except (OSError, ValueError, TuneError, AttributeError) as error:
        _log.warning("ignoring the wave table %s: %s; `interlace tune` measures it again", path.name, error)
        return None
    return table


def _tell_of_others(directory: Path, key: TableKey) -> None:
    """Tells of a table that would be of `key` but for its format, or for the kernels it was measured with.

    Its file has another name, as its key was another.
    """
    for path in sorted(directory.glob(f"{key.file_prefix}*.json")):
        try:
            found = json.loads(path.read_text())
            reason = _why_not(found["format"], found["key"], key)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            continue
        if reason is not None:
            _log.warning(
                "ignoring the wave table %s: %s; `interlace tune` measures it again", path.name, reason
            )
            return


def _why_not(format_number: int, theirs: Mapping[str, Any], key: TableKey) -> str | None:
    """Why a table that was measured for the same job is not the one of `key`; None: it is of another job."""
    ours = json.loads(json.dumps(asdict(key)))
    compared = [
        name for name, value in ours.items() if format_number == FORMAT or not isinstance(value, list)
    ]
    others = {name for name in compared if theirs[name] != ours[name]}
    if not others <= {"kernels", "library"} or _job_of(theirs["kernels"]) != _job_of(key.kernels):
        return None
    if format_number < FORMAT:
        return f"it has format {format_number}, expected {FORMAT}"
    if not others:
        return None
    theirs_are = f"{theirs['kernels']} kernels ({theirs['library']})"
    return f"it was measured with {theirs_are}, these are {key.kernels} ({key.library})"


def _job_of(kernels: str) -> tuple[str, str]:
    """Backend and weights of a key's `kernels`, such as "native avx2, int8 weights": all but the instruction set."""
    return kernels.split()[0], kernels.partition(", ")[2]
