"""Wave tables to test with: smooth ones, and ones drawn at random."""

from __future__ import annotations

from hypothesis import strategies as st

from tokenweave.wave_table import AttentionTimes, Curve, Pace, RankShape, TableKey, WaveTable


def key_of(size: int = 2, hidden_size: int = 576, dtype: str = "bfloat16", threads: int = 1) -> TableKey:
    return TableKey(
        machine="a machine, 2 cores",
        kernels="native avx2",
        library="1",
        dtype=dtype,
        threads=threads,
        hidden_size=hidden_size,
        head_dim=64,
        num_experts=0,
        experts_per_token=0,
        sliding_window=0,
        ranks=(RankShape(5, 2, 768, 24576),) * size,
    )


def linear_table(size: int = 2, token_s: float = 20e-6, reduce_s: float = 1e-6) -> WaveTable:
    """Times in proportion to the tokens: a cut costs nothing but what is handed from lane to lane."""
    tokens = (1, 4096)

    def curve(per_token_s: float) -> Curve:
        return Curve(tokens, (per_token_s, 4096 * per_token_s))

    return WaveTable(
        key=key_of(size),
        projections=curve(0.3 * token_s),
        attention=AttentionTimes((1,), (1e-6,), (5e-9,)),
        mlp=curve(0.7 * token_s),
        embed=curve(1e-6),
        logits=curve(20e-6),
        reduce=curve(reduce_s),
        switch_s=10e-6,
        wake_s=0.0,
    )


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
    each = {name: curves() for name in ("projections", "mlp", "embed", "logits", "reduce")}
    return st.builds(
        WaveTable,
        key=st.just(key_of()),
        attention=attention,
        switch_s=st.floats(0, 1e-3),
        wake_s=st.floats(0, 1e-3),
        pace=st.builds(Pace, st.just((1, 512)), st.tuples(st.floats(0.5, 2), st.floats(0.5, 2))),
        **each,
    )
