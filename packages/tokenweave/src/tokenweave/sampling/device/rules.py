"""The rules of `tokenweave.sampling.reference` over a whole batch, as operations of torch on any device.

The host never waits: nothing is selected by a mask, no number is read. Rows that have a feature and rows that do not go
the same way, with numbers that switch it off.

Invariant: what a row gives depends on that row alone, and its bits are the reference's wherever torch's operations
round as IEEE 754 says. A row without a finite largest logit gives some token, and disturbs no other row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.sampling.device.arithmetic import exp_of_negative, masses, ordered, scores_of, uniform
from tokenweave.sampling.device.parameters import Features, Parameters
from tokenweave.sampling.device.search import first_passing, largest_holding
from tokenweave.sampling.reference import LARGEST

INT32_MAX = 2**31 - 1
WEIGHT_BITS = 30  # no weight is above 1, whose bits are below 2^30


def penalised(logits: Tensor, entries: Tensor, choice: Parameters) -> Tensor:
    """Scores (num_rows, vocab_size) float32, of logits and the `TokenSlots` entries of the same shape."""
    repetition = choice.repetition_penalty
    changed = torch.where(logits > 0, logits / repetition, logits * repetition)
    is_changed = (entries > 0) & (repetition != 1)
    scores = torch.where(is_changed, changed.clamp_(-float(LARGEST), float(LARGEST)), logits)
    counts = entries >> 1
    lowered = scores - choice.frequency_penalty * counts.to(torch.float32) - choice.presence_penalty
    return torch.where(counts > 0, lowered, scores)


def draw(scores: Tensor, best: Tensor, choice: Parameters, features: Features) -> Tensor:
    """A token of each row of `scores`, whose best are `best` (num_rows,): (num_rows,) int64."""
    mass = masses(filtered(scores, best, choice, features), scores.shape[1])
    target = uniform(choice.seed, choice.output_index) * mass.sum(1)
    return first_passing(mass, target)


def filtered(scores: Tensor, best: Tensor, choice: Parameters, features: Features) -> Tensor:
    """Weights (num_rows, vocab_size) float32: 0 of the tokens that top-k, top-p and min-p leave out."""
    temperature = torch.where(choice.temperature == 0, 1.0, choice.temperature)  # of greedy rows, never used
    weights = exp_of_negative((scores - best[:, None]) / temperature)
    if features.has_top_k:
        weights = torch.where(scores >= kth_best(scores, choice.top_k)[:, None], weights, 0.0)
    if features.has_top_p:
        weights = torch.where(in_nucleus(weights, choice.top_p), weights, 0.0)
    if features.has_min_p:
        weights = torch.where(weights >= choice.min_p, weights, 0.0)
    return weights


def kth_best(scores: Tensor, k: Tensor) -> Tensor:
    """The k-th largest of each row, k (num_rows,) int64 from 1 to vocab_size: (num_rows,) float32."""
    order = ordered(scores)

    def holds(candidates: Tensor) -> Tensor:
        floor = (candidates - 2**31).to(torch.int32)
        return (order[:, None] >= floor[:, :, None]).sum(2) >= k[:, None]

    found = largest_holding(holds, order, num_bits=32)
    return scores_of((found - 2**31).to(torch.int32))


def in_nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Whether a token stays: those before it, the heaviest first and of equals the first, hold less than `top_p`.

    (num_rows, vocab_size) bool. Of `top_p` 1, a token stays if it has a mass.
    """
    mass = masses(weights, weights.shape[1])
    target = top_p * mass.sum(1)
    bits = weights.view(torch.int32)  # of numbers that are not negative, they order as these do

    def holds(candidates: Tensor) -> Tensor:
        floor = candidates.clamp(max=INT32_MAX).to(torch.int32)
        heavier = torch.where(bits[:, None] >= floor[:, :, None], mass[:, None], 0)
        return heavier.sum(2) >= target[:, None]

    # The lightest that stays: from it on the mass reaches the target, and without it it does not.
    found = largest_holding(holds, bits, num_bits=WEIGHT_BITS)
    edge = found.clamp(max=INT32_MAX).to(torch.int32).view(torch.float32)[:, None]
    is_heavier, is_equal = weights > edge, weights == edge
    left = target.ceil().to(torch.int64) - torch.where(is_heavier, mass, 0).sum(1)
    mass_of_edge = masses(edge, weights.shape[1]).squeeze(1).clamp_(min=1)  # 0 in a row of no numbers
    num_equal = (left + mass_of_edge - 1).div(mass_of_edge, rounding_mode="floor")
    last_equal = first_passing(is_equal.to(torch.int64), num_equal - 1)
    places = torch.arange(weights.shape[1], device=weights.device)
    return is_heavier | (is_equal & (places <= last_equal[:, None]))


def likeliest_of(logits: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens of each row, of equals the first: (num_rows, count) int64."""
    vocab_size = logits.shape[1]
    # Numbers that are all different, so that it does not matter which of equals topk takes. -0 + 0 is 0.
    backwards = torch.arange(vocab_size - 1, -1, -1, device=logits.device)
    order = ordered(logits + 0.0).to(torch.int64) * 2**32 + backwards
    return order.topk(count, dim=1).indices
