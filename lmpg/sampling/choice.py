"""A token from logits, with what is recorded of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lmpg.sampling.inversion import tokens_at, truncated


@dataclass(frozen=True)
class Choice:
    """Of R rows: token ids, their log-probs and the entropy of the whole distribution, [R]."""

    tokens_R: Tensor
    logprobs_R: Tensor
    entropy_R: Tensor


def chosen(logits_RV: Tensor, uniforms_R: Tensor | None, top_k: int, top_p: float) -> Choice:
    """The token at each row's uniform number, or without these the likeliest; overwrites logits.

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
