"""Sampling: from a pass's logits to one token per sequence.

Invariant: a sequence's token is a pure function of its logits, its tokens, its parameters, its seed and its
output index. Each row is worked on alone, as one contiguous vector, so that the shape of the batch cannot change
a bit of the arithmetic; the random number comes from the seed and the index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from interlace.engine.output import Logprob
from interlace.engine.sampling_params import SamplingParams
from interlace.engine.sequence import Sequence
from interlace.errors import RequestFailed

Float32Array = npt.NDArray[np.float32]
UInt32Array = npt.NDArray[np.uint32]
IndexArray = npt.NDArray[np.intp]

CHUNK = 256  # entries whose sum or maximum is taken first, so that most of a vocabulary is touched only once
UINT64 = 2**64 - 1
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class SampledToken:
    token_id: int
    logprobs: dict[int, Logprob] | None  # the likeliest first, then the chosen one if it is not among them


def sample(logits: Tensor, sequences: list[Sequence]) -> list[SampledToken | Exception]:
    """The next token of each of `sequences`, from its row of `logits` (num_logits, vocab_size) float32.

    A row that no token can be taken from gives the error instead, and changes nothing for the others.
    """
    rows: Float32Array = logits.numpy()
    return [_sample_alone(row, sequence) for row, sequence in zip(rows, sequences, strict=True)]


def _sample_alone(row: Float32Array, sequence: Sequence) -> SampledToken | Exception:
    try:
        return _sample_row(row, sequence)
    except Exception as error:
        return error


def _sample_row(row: Float32Array, sequence: Sequence) -> SampledToken:
    params = sequence.params
    if params.is_greedy and not params.has_penalties:
        token = int(row.argmax())  # the first of equals, whatever the batch; the first NaN where there is one
        _check_finite(row[token], sequence)
    else:
        _check_finite(row.max(), sequence)  # of the model's own numbers: no penalty makes them overflow
        scores = penalised(row, sequence) if params.has_penalties else row
        token = int(scores.argmax()) if params.is_greedy else _draw(scores, sequence)
    return SampledToken(token, None if params.logprobs is None else _logprobs(row, token, params.logprobs))


def _check_finite(largest: np.float32, sequence: Sequence) -> None:
    if not np.isfinite(largest):
        raise RequestFailed(
            f"the model's largest logit after {sequence.num_tokens} tokens is {largest}: expected a finite "
            f"number; its weights are damaged, or overflow on this text in this dtype (try dtype='float32')"
        )


def penalised(row: Float32Array, sequence: Sequence) -> Float32Array:
    """A copy of `row` with repetition (prompt and output), then frequency and presence (output) penalties.

    A score beyond float32 becomes its largest number, so that no penalty makes an infinity.
    """
    params = sequence.params
    scores = row.copy()
    if params.repetition_penalty != 1.0:
        seen = sequence.tokens[: sequence.num_tokens]
        penalty = np.float32(params.repetition_penalty)
        values = scores[seen]
        with np.errstate(over="ignore"):
            changed = np.where(values > 0, values / penalty, values * penalty)
        scores[seen] = np.clip(changed, -LARGEST, LARGEST)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        tokens, counts = np.unique(sequence.output_ids, return_counts=True)
        scores[tokens] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        scores[tokens] -= np.float32(params.presence_penalty)
    return scores


def _draw(scores: Float32Array, sequence: Sequence) -> int:
    """A token drawn from what the filters leave of the tempered distribution."""
    kept, weights = filtered(scores, sequence.params)
    drawn = _inverse_cdf(weights, uniform(sequence.seed, sequence.num_output))
    return int(drawn if kept is None else kept[drawn])


def filtered(scores: Float32Array, params: SamplingParams) -> tuple[IndexArray | None, Float32Array]:
    """Tokens left by top-k, top-p and min-p, ascending (None: all), and their weights; the best weighs 1."""
    kept: IndexArray | None = None
    if 0 < params.top_k < len(scores):
        kept = _top_k(scores, params.top_k)
        scores = scores[kept]
    with np.errstate(over="ignore", invalid="ignore"):  # far lower scores go to -inf and weigh 0
        weights: Float32Array = np.exp((scores - scores.max()) / np.float32(params.temperature))
    if params.top_p < 1.0:
        kept, weights = _narrow(kept, weights, _nucleus(weights, params.top_p))
    if params.min_p > 0.0:
        kept, weights = _narrow(kept, weights, np.flatnonzero(weights >= np.float32(params.min_p)))
    return kept, weights


def _narrow(
    kept: IndexArray | None, weights: Float32Array, chosen: IndexArray
) -> tuple[IndexArray, Float32Array]:
    return (chosen if kept is None else kept[chosen]), weights[chosen]


def _top_k(scores: Float32Array, k: int) -> IndexArray:
    """Every token that scores no less than the k-th best, ascending; equals of the k-th all stay.

    The k-th best of the chunks' maxima cannot exceed the k-th best score: two passes over the vocabulary
    discard most of it.
    """
    maxima = np.maximum.reduceat(scores, np.arange(0, len(scores), CHUNK // 4))
    if k > len(maxima):
        kth = np.partition(scores, -k)[-k]
        return np.flatnonzero(scores >= kth)
    floor = np.partition(maxima, -k)[-k]
    candidates = np.flatnonzero(scores >= floor)
    kth = np.partition(scores[candidates], -k)[-k]
    best: IndexArray = candidates[scores[candidates] >= kth]
    return best


def _nucleus(weights: Float32Array, top_p: float) -> IndexArray:
    """The likeliest tokens that reach `top_p` of the mass, ascending; of equals at the edge, the first.

    A token stays when the tokens before it, likeliest first, hold less than `top_p`. Positive floats order as
    their bits do, so counting passes over the upper half of the bits, the next 8 and the last 8 find the weight
    at the edge without sorting. Tokens so light that all of them could not hold half of what `top_p` leaves over
    are passed by.
    """
    total = float(weights.sum(dtype=np.float64))
    target, above = top_p * total, 0.0
    candidates = np.flatnonzero(weights > (1 - top_p) * total / (2 * len(weights)))
    at_edge = candidates
    for shift, mask in ((16, 0xFFFF), (8, 0xFF), (0, 0xFF)):
        edge_weights = weights[at_edge]
        keys = (edge_weights.view(np.uint32) >> np.uint32(shift)) & np.uint32(mask)
        edge, above = _edge(keys, edge_weights, above, target)
        at_edge = at_edge[keys == edge]
    weight = weights[at_edge[0]]
    before = above + np.arange(len(at_edge)) * float(weight)  # all that are left weigh the same
    kept = weights > weight
    kept[at_edge[before < target]] = True
    return np.flatnonzero(kept)


def _edge(keys: UInt32Array, weights: Float32Array, above: float, target: float) -> tuple[int, float]:
    """The largest key at which the mass from there up, and `above`, reaches `target`; and the mass beyond it."""
    lowest = int(keys.min())
    places = (keys - np.uint32(lowest)).astype(np.intp)  # bincount is ten times slower on uint32
    mass = np.bincount(places, weights=weights)  # float64, summed in the order of the tokens
    from_here_up = above + np.cumsum(mass[::-1])[::-1]
    reached = np.flatnonzero(from_here_up >= target)
    edge = int(reached[-1]) if len(reached) else 0  # none: the sums were rounded down
    beyond = float(from_here_up[edge + 1]) if edge + 1 < len(mass) else above
    return lowest + edge, beyond


def _inverse_cdf(weights: Float32Array, u: float) -> int:
    """The index where the running sum of `weights` passes the fraction `u` of their total."""
    starts = np.arange(0, len(weights), CHUNK)
    sums = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    target = u * sums[-1]
    chunk = int(np.searchsorted(sums, target, side="right"))
    start = CHUNK * chunk
    running = np.cumsum(weights[start : start + CHUNK], dtype=np.float64)
    index = int(np.searchsorted(running, target - (sums[chunk - 1] if chunk else 0.0), side="right"))
    if index < len(running):
        return start + index
    return start + int(np.flatnonzero(weights[start : start + CHUNK])[-1])  # the chunk's sum was rounded up


def _logprobs(row: Float32Array, token: int, count: int) -> dict[int, Logprob]:
    """Log-probabilities of the `count` likeliest tokens (of equals, the lower id first) and of `token`."""
    maximum = row.max()
    with np.errstate(over="ignore"):  # as in `filtered`
        log_total = float(maximum) + float(np.log(np.exp(row - maximum).sum(dtype=np.float64)))
    top: list[int] = []
    if count > 0:
        candidates = _top_k(row, min(count, len(row)))
        top = candidates[np.argsort(-row[candidates], kind="stable")][:count].tolist()
    ranked = {index: Logprob(float(row[index]) - log_total, rank) for rank, index in enumerate(top, start=1)}
    if token not in ranked:
        ranked[token] = Logprob(float(row[token]) - log_total, 1 + int(np.count_nonzero(row > row[token])))
    return ranked


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
