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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenweave.curves import LEVEL, AttentionTimes, Curve, Pace
from tokenweave.errors import TuneError
from tokenweave.host_costs import HostCosts
from tokenweave.sm_sharing import CtaRows, SmSharing

FORMAT = 4
CURVES = ("projections", "embed", "logits", "reduce")  # of all layers alike, or of none
_log = logging.getLogger("tokenweave")


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
    host: HostCosts
    pace: Pace = LEVEL
    is_measured: bool = True
    sharing: SmSharing | None = None  # on GPUs; None: lanes do not share SMs

    def __post_init__(self) -> None:
        if len(self.kinds) != len(self.key.kinds):
            raise TuneError(
                f"got times of {len(self.kinds)} kinds of layers; expected {len(self.key.kinds)}, as in the key"
            )
        beside = () if self.sharing is None else self.sharing.beside
        if any(len(each.mlps) != len(self.kinds) for each in beside):
            raise TuneError(
                f"got MLPs beside CTAs of other kinds; expected {len(self.kinds)} of each number of CTAs"
            )

    @property
    def is_of_gpu(self) -> bool:
        """Whether lanes are streams: there one thread issues every step."""
        return self.host.issue_s > 0

    def taking(self, whole: CtaRows, woven: CtaRows) -> WaveTable:
        """The table of reductions that take these CTAs, by tokens. Only for one with `sharing`."""
        assert self.sharing is not None
        sharing = SmSharing.of(self.sharing.num_sms, self.sharing.beside, whole, woven)
        return replace(self, sharing=sharing, reduce=sharing.reduce_whole())

    def beside_reduction(self, num_tokens: int) -> WaveTable:
        """The times in a woven batch, of stages that run beside a reduction of so many tokens, which holds SMs.

        Attention fills the device, so it is slowed down in proportion; products were timed. The table itself where SMs
        are not shared.
        """
        if self.sharing is None:
            return self
        beside = self.sharing.in_part(num_tokens)
        factor = self.sharing.slow_down(beside.num_ctas)
        kinds = (
            KindTimes(kind.attention.times(factor), mlp)
            for kind, mlp in zip(self.kinds, beside.mlps, strict=True)
        )
        return replace(self, projections=beside.projections, kinds=tuple(kinds), reduce=self.sharing.reduce)

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
                    KindTimes(AttentionTimes(**_tuples(kind["attention"])), Curve.from_json(kind["mlp"]))
                    for kind in found["kinds"]
                ),
                host=HostCosts(**found["host"]),
                is_measured=bool(found["is_measured"]),
                pace=Pace(*(tuple(found["pace"][axis]) for axis in ("tokens", "factors"))),
                sharing=None if found["sharing"] is None else SmSharing.from_json(found["sharing"]),
                **{name: Curve.from_json(found[name]) for name in CURVES},
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
