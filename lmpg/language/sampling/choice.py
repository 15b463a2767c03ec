"""A token from logits: one uniform number per token, inverted through the distribution's CDF, and
what is recorded of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmpg.runtime.machine import widest

BLOCK = 256
"""Tokens whose probabilities are summed first: about √V for the vocabularies of today."""


@dataclass(frozen=True)
class Choice:
    """Of R rows: token ids, their log-probs and the entropy of the whole distribution, [R]."""

    tokens_R: Tensor
    logprobs_R: Tensor
    entropy_R: Tensor


def choose(logits_RV: Tensor, uniforms_R: Tensor | None, top_k: int, top_p: float) -> Choice:
    """The token at each row's uniform number, or without numbers the likeliest; overwrites logits.

    Everything follows from one softmax: log p of the token is the log of its probability, and
    H = −Σ p log p = log Z − Σ p · logit with log Z = logit − log p of that token. Logits that are
    at most 0 keep the difference exact.
    """
    logits_RV.sub_(logits_RV.amax(1, keepdim=True))
    probs_RV = logits_RV.softmax(1)
    if uniforms_R is None:
        tokens_R = logits_RV.argmax(1)
    else:
        tokens_R = tokens_at(truncated(probs_RV, top_k, top_p), uniforms_R)
    tokens_R1 = tokens_R[:, None]
    logprobs_R1 = probs_RV.gather(1, tokens_R1).log_()
    log_z_R1 = logits_RV.gather(1, tokens_R1) - logprobs_R1
    entropy_R1 = log_z_R1 - probs_RV.mul_(logits_RV).sum(1, keepdim=True)
    return Choice(tokens_R, logprobs_R1[:, 0], entropy_R1[:, 0])


def tokens_at(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The id whose stretch of the cumulative distribution holds u ∈ [0, 1); never one with p = 0.

    probs need not sum to exactly 1: u runs over their true sum. In two levels, the block of tokens
    in which it lies and its place in the block, because cumulating over V is slow. Cumulated is
    in float64, by the host where the device has none, and each row's token depends on that row
    alone.
    """
    here, vocabulary = probs_BV.device, probs_BV.shape[1]
    there = here if widest(here) is torch.float64 else torch.device("cpu")
    uniforms_B = uniforms_B.to(there)
    whole = vocabulary // BLOCK * BLOCK
    if vocabulary <= 4 * BLOCK:
        return _inverted(probs_BV.to(there), uniforms_B)[0][:, 0].to(here)
    sums_BN = probs_BV[:, :whole].unflatten(1, (-1, BLOCK)).sum(2)
    if whole < vocabulary:
        sums_BN = torch.cat([sums_BN, probs_BV[:, whole:].sum(1, keepdim=True)], 1)
    sums_BN = sums_BN.to(there)
    block_B1, target_B1, cdf_BN = _inverted(sums_BN, uniforms_B)
    sum_B1 = sums_BN.gather(1, block_B1).double()
    # how far in the block: rounding may lift it to 1, above which there is no token
    within_B1 = (target_B1 - cdf_BN.gather(1, block_B1) + sum_B1).div_(sum_B1)
    within_B1.clamp_(0, 1 - 2**-53)
    ids_BW = block_B1 * BLOCK + torch.arange(BLOCK, device=there)
    inside_BW = probs_BV.gather(1, ids_BW.clamp(max=vocabulary - 1).to(here)).to(there)
    inside_BW.masked_fill_(ids_BW >= vocabulary, 0)
    return (block_B1 * BLOCK + _inverted(inside_BW, within_B1[:, 0])[0])[:, 0].to(here)


def _inverted(weights_BN: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(index [B, 1] whose stretch of the cumulated weights holds u, never of a weight 0; u times
    the total, [B, 1]; the cumulated weights).
    """
    cdf_BN = weights_BN.cumsum(1, dtype=torch.float64)
    # u ≤ 1 − 2⁻⁵³ times the total rounds to less than the total: there is always an index above
    target_B1 = uniforms_B.to(cdf_BN)[:, None] * cdf_BN[:, -1:]
    index_B1 = torch.searchsorted(cdf_BN, target_B1, right=True)
    index_B1.clamp_(max=cdf_BN.shape[1] - 1)  # beyond are those of weights that are NaN
    return index_B1, target_B1, cdf_BN


def truncated(probs_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities, 0 outside the top k and the top p (nucleus, arXiv 1904.09751).

    They no longer sum to 1. top_k = 0 and top_p = 1 keep all; the likeliest token always stays.
    """
    if top_k:
        least_B1 = probs_BV.topk(min(top_k, probs_BV.shape[1]), 1).values[:, -1:]
        probs_BV = torch.where(probs_BV >= least_B1, probs_BV, 0.0)
    if top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(1, descending=True)
        before_BV = sorted_BV.cumsum(1) - sorted_BV
        kept_BV = before_BV < top_p * sorted_BV.sum(1, keepdim=True)
        probs_BV = torch.zeros_like(probs_BV).scatter(
            1, order_BV, torch.where(kept_BV, sorted_BV, 0.0)
        )
    return probs_BV
