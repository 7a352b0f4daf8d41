"""The rules of sampling, written plainly. The native sampler (native/sampling/) gives the same bits.

A token's *weight* is exp((score - best score) / temperature) in float32, by `exp_of_negative`; the best weighs 1.
Its *mass* is the weight as an integer number of quanta, rounded to even. A quantum is the 2^52th part of the next
power of two from the vocabulary's size on: no sum of masses leaves the integers that a float64 holds. So every sum
is exact, and no order of taking it, by lanes, by chunks or by threads, changes a bit. What the rounding loses over a
whole vocabulary is less than what float32 loses over one weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tokenweave.sampling.row import Float32Array, SampledRow, SamplingRow

IndexArray = npt.NDArray[np.intp]
MassArray = npt.NDArray[np.int64]

UINT64 = 2**64 - 1
LARGEST = np.finfo(np.float32).max
# Of exp on [-log(2)/2, log(2)/2]: 1 + r + r^2 p(r), from p's highest coefficient down. A minimax fit.
EXP_COEFFICIENTS = (1.3814599e-3, 8.368717e-3, 4.166839e-2, 1.6666521e-1, 4.9999994e-1)
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # log(2); the first has 9 bits
ROUNDING = np.float32(12582912.0)  # 1.5 * 2^23: a float32 that is added to it is rounded to an integer


def reference_sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledRow]:
    """Returns the token of each row of `logits` (len(rows), vocab_size) float32."""
    values: Float32Array = logits.numpy()
    return [_sample(row, choice) for row, choice in zip(values, rows, strict=True)]


def _sample(row: Float32Array, choice: SamplingRow) -> SampledRow:
    largest = row.max() + np.float32(0)  # no -0
    if not np.isfinite(largest):
        return SampledRow(None, float(largest))
    scores = penalised(row, choice) if choice.has_penalties else row
    token = int(scores.argmax()) if choice.temperature == 0 else _draw(scores, choice)
    if choice.logprobs is None:
        return SampledRow(token, float(largest))
    total = int(masses(weights_of(row, 1.0), len(row)).sum()) / quanta_of_one(len(row))
    likeliest = np.argsort(-row, kind="stable")[: choice.logprobs]
    rank = 1 + int(np.count_nonzero(row > row[token]))
    return SampledRow(token, float(largest), total, rank, tuple(likeliest.tolist()))


def penalised(row: Float32Array, choice: SamplingRow) -> Float32Array:
    """A copy of `row` with repetition (prompt and output), then frequency and presence (output) penalties.

    A score beyond float32 becomes its largest number, so that no penalty makes an infinity.
    """
    scores = row.copy()
    if choice.repetition_penalty != 1:
        penalty = np.float32(choice.repetition_penalty)
        values = scores[choice.tokens]
        with np.errstate(over="ignore"):
            changed = np.where(values > 0, values / penalty, values * penalty)
        scores[choice.tokens] = np.clip(changed, -LARGEST, LARGEST)
    if choice.frequency_penalty != 0 or choice.presence_penalty != 0:
        tokens, counts = np.unique(choice.tokens[choice.num_prompt :], return_counts=True)
        scores[tokens] -= np.float32(choice.frequency_penalty) * counts.astype(np.float32)
        scores[tokens] -= np.float32(choice.presence_penalty)
    return scores


def _draw(scores: Float32Array, choice: SamplingRow) -> int:
    """The first token that stays at which the running mass passes a random fraction of all that stays."""
    kept, weights = filtered(scores, choice)
    running = np.cumsum(masses(weights, len(scores)))
    target = uniform(choice.seed, choice.output_index) * float(running[-1])
    return int(kept[np.searchsorted(running, target, side="right")])


def filtered(scores: Float32Array, choice: SamplingRow) -> tuple[IndexArray, Float32Array]:
    """Tokens left by top-k, top-p and min-p, ascending, and their weights; the best weighs 1.

    Top-k keeps every equal of the k-th best. Top-p keeps a token when those before it, the likeliest first and of
    equals the first, hold less than `top_p` of the mass.
    """
    kept = np.arange(len(scores))
    if 0 < choice.top_k < len(scores):
        kept = np.flatnonzero(scores >= np.sort(scores)[-choice.top_k])
    weights = weights_of(scores[kept], choice.temperature)
    stays = np.ones(len(kept), dtype=bool)
    if choice.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        mass = masses(weights, len(scores))[order]
        stays[order] = np.cumsum(mass) - mass < choice.top_p * float(mass.sum())
    if choice.min_p > 0:
        stays &= weights >= np.float32(choice.min_p)
    return kept[stays], weights[stays]


def weights_of(scores: Float32Array, temperature: float) -> Float32Array:
    """exp((scores - best) / temperature)."""
    with np.errstate(over="ignore", invalid="ignore"):  # far lower scores go to -inf and weigh 0
        return exp_of_negative((scores - scores.max()) / np.float32(temperature))


def exp_of_negative(x: Float32Array) -> Float32Array:
    """exp(x) for x <= 0, to one unit in the last place: exactly 1 at 0, exactly 0 below -87."""
    with np.errstate(over="ignore", invalid="ignore"):
        whole = (x * np.float32(1.44269504) + ROUNDING) - ROUNDING
        r = (x - whole * LOG2_HIGH) - whole * LOG2_LOW
        p = np.full_like(x, EXP_COEFFICIENTS[0])
        for coefficient in EXP_COEFFICIENTS[1:]:
            p = p * r + np.float32(coefficient)
        fraction = (p * (r * r) + r) + np.float32(1)
        scaled: Float32Array = np.ldexp(fraction, np.where(x >= -87, whole, 0).astype(np.int32))
    return np.where(x >= -87, scaled, np.float32(0))


def quanta_of_one(vocab_size: int) -> int:
    """The mass of a weight of 1."""
    return 1 << (52 - max(1, (vocab_size - 1).bit_length()))


def masses(weights: Float32Array, vocab_size: int) -> MassArray:
    """Weights as integers."""
    quanta: MassArray = np.rint(weights.astype(np.float64) * quanta_of_one(vocab_size)).astype(np.int64)
    return quanta


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) of output `index` under `seed`: SplitMix64 (Steele, Lea, Flood 2014).

    The seed is mixed once first, so that neighbouring seeds start far apart on the generator's cycle.
    """
    mixed = mix64(mix64(seed) + (index + 1) * 0x9E3779B97F4A7C15)
    return (mixed >> 11) * 2.0**-53


def mix64(value: int) -> int:
    """SplitMix64's finaliser: every bit of the result depends on every bit of `value`."""
    value &= UINT64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & UINT64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & UINT64
    return value ^ (value >> 31)
