"""Wave tables to test with: smooth ones, and ones drawn at random."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tokenweave.curves import AttentionTimes, Curve, Pace
from tokenweave.host_costs import HostCosts
from tokenweave.sm_sharing import BesideCtas, SmSharing
from tokenweave.wave_table import (
    CURVES,
    KindTimes,
    LayerKind,
    MlpShape,
    RankShape,
    TableKey,
    WaveTable,
)


def key_of(
    size: int = 2,
    hidden_size: int = 576,
    dtype: str = "bfloat16",
    threads: int = 1,
    kinds: tuple[LayerKind, ...] = (),
) -> TableKey:
    """`kinds`: of layers; (): dense ones that see all keys."""
    return TableKey(
        machine="a machine, 2 cores",
        kernels="native avx2",
        library="1",
        dtype=dtype,
        threads=threads,
        hidden_size=hidden_size,
        head_dim=64,
        kinds=kinds or (LayerKind(MlpShape((768,) * size)),),
        ranks=(RankShape(5, 2, 24576),) * size,
    )


def linear_table(size: int = 2, token_s: float = 20e-6, reduce_s: float = 1e-6) -> WaveTable:
    """Times in proportion to the tokens: a cut costs nothing but what is handed from lane to lane."""
    tokens = (1, 4096)

    def curve(per_token_s: float) -> Curve:
        return Curve(tokens, (per_token_s, 4096 * per_token_s))

    return WaveTable(
        key=key_of(size),
        projections=curve(0.3 * token_s),
        kinds=(KindTimes(AttentionTimes((1,), (1e-6,), (5e-9,)), curve(0.7 * token_s)),),
        embed=curve(1e-6),
        logits=curve(20e-6),
        reduce=curve(reduce_s),
        host=HostCosts(switch_s=10e-6),
    )


WINDOWED, FULL = LayerKind(MlpShape((768, 768)), window=128), LayerKind(MlpShape((768, 768)))
SPARSE = LayerKind(MlpShape((96, 96), num_experts=8, experts_per_token=2))
KINDS = (WINDOWED, FULL, SPARSE)


def mixed_table() -> WaveTable:
    """A `linear_table` of two ranks with three kinds of layers: with a window, without, and with experts."""
    table = linear_table()
    (times,) = table.kinds
    sparse = KindTimes(times.attention, Curve((1, 4096), (10e-6, 4096 * 10e-6)))
    return replace(table, key=key_of(kinds=KINDS), kinds=(times, times, sparse))


def gpu_table(reduce_us: dict[int, float], slow_down: dict[int, float], issue_s: float = 0.0) -> WaveTable:
    """A table of a GPU of 132 SMs: by numbers of CTAs, a reduction's microseconds a token, and by what products beside
    it take longer. Reductions take the most CTAs."""
    table = linear_table(reduce_s=1e-6 * reduce_us[max(reduce_us)])
    beside = tuple(
        BesideCtas(
            num_ctas,
            Curve((128, 4096), (128e-6 * reduce_us[num_ctas], 4096e-6 * reduce_us[num_ctas])),
            table.projections.times(slow_down[num_ctas]),
            (table.kinds[0].mlp.times(slow_down[num_ctas]),),
        )
        for num_ctas in sorted(reduce_us)
    )
    return replace(table, host=HostCosts(issue_s=issue_s), sharing=SmSharing.of(132, beside))


def curves() -> st.SearchStrategy[Curve]:
    """Any curve of a few points; nothing about it is monotone. A time is none at all, or one that a clock can tell."""
    times_s = st.just(0.0) | st.floats(1e-12, 1)
    points = st.dictionaries(st.integers(1, 4096), times_s, min_size=1, max_size=8)
    return points.map(lambda found: Curve(tuple(sorted(found)), tuple(found[n] for n in sorted(found))))


def tables() -> st.SearchStrategy[WaveTable]:
    """Any table, noise and nonsense included."""
    attention = st.builds(
        lambda floor_s, pair_s: AttentionTimes((1, 64), floor_s, pair_s),
        st.tuples(st.floats(0, 1e-3), st.floats(0, 1e-3)),
        st.tuples(st.floats(0, 1e-6), st.floats(0, 1e-6)),
    )
    each = {name: curves() for name in CURVES}
    return st.builds(
        WaveTable,
        key=st.just(key_of()),
        kinds=st.tuples(st.builds(KindTimes, attention, curves())),
        host=st.builds(HostCosts, *[st.floats(0, 1e-3)] * 4),
        pace=st.builds(Pace, st.just((1, 512)), st.tuples(st.floats(0.5, 2), st.floats(0.5, 2))),
        **each,
    )
