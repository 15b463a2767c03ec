"""A rollout sampled in parts: while one is sampled, rewards score those before it."""

from __future__ import annotations

from itertools import chain

from torch import Tensor

from lmpg.data.prompts import Prompt
from lmpg.rewards.scorer import Scorer, Scores
from lmpg.sampling.concatenation import concatenated
from lmpg.training.responding import Responder, Responses
from lmpg.training.stopwatch import Stopwatch


def scored_responses(
    responder: Responder,
    scorer: Scorer,
    prompts: list[Prompt],
    group_size: int,
    uniforms_BT: Tensor,
    chunks: int,
    watch: Stopwatch,
) -> tuple[Responses, Scores]:
    """`group_size` responses to each of this rank's prompts, with their scores.

    The prompts are divided into `chunks` parts, so groups stay whole; the responses are the same
    whatever their number. Only the wait for scores after the last part counts as time/score.
    """
    size = -(-len(prompts) // chunks)
    parts, pending = [], []
    with watch("time/sample"):
        for start in range(0, len(prompts), size):
            rows = slice(start * group_size, (start + size) * group_size)
            part = prompts[start : start + size]
            parts.append(responder.respond(part, group_size, uniforms_BT[rows]))
            pending.append(parts[-1].submitted_to(scorer))
        responses = _joined(parts, responder.policy.pad_token_id)
    with watch("time/score"):
        scores = Scores.joined([one.result() for one in pending])
    return responses, scores


def _joined(parts: list[Responses], pad_token_id: int) -> Responses:
    return Responses(
        prompts=list(chain.from_iterable(x.prompts for x in parts)),
        samples=concatenated([x.samples for x in parts], pad_token_id),
        completions=list(chain.from_iterable(x.completions for x in parts)),
        ids=list(chain.from_iterable(x.ids for x in parts)),
    )
