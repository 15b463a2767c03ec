"""Log-probabilities of given texts under a policy, over the tokens in their loss masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmpg.language.data.texts import Text
from lmpg.language.models.inputs import language_inputs, pad_right
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.runtime.processes import Processes
from lmpg.runtime.progress import with_progress
from lmpg.types import Evaluation


def evaluated_texts(policy: CausalLMPolicy, texts: list[Text]) -> tuple[Evaluation, Tensor]:
    """The policy's Evaluation of every token after the prompts, and the loss mask, bool [B, T]."""
    inputs = language_inputs(
        [text.ids[: text.prompt_length] for text in texts],
        [text.ids[text.prompt_length :] for text in texts],
        policy.pad_token_id,
    )
    masks = [list(map(int, text.loss_mask[text.prompt_length :])) for text in texts]
    mask_BT = pad_right(masks, 0).bool().to(policy.device)
    return policy.evaluate(inputs), mask_BT


def text_logprobs(policy: CausalLMPolicy, texts: list[Text]) -> Tensor:
    """Σ log π over the tokens in the loss mask of each text, [B]."""
    new, mask_BT = evaluated_texts(policy, texts)
    return torch.where(mask_BT, new.logprobs_BT, 0).sum(1)


@torch.no_grad()
def answer_logprobs(policy: CausalLMPolicy, texts: list[Text]) -> list[list[float]]:
    """log π of each token of the answers; NaN of those that are not in the loss mask."""
    new, mask_BT = evaluated_texts(policy, texts)
    rows = torch.where(mask_BT, new.logprobs_BT, torch.nan).tolist()
    return [row[: len(text.ids) - text.prompt_length] for row, text in zip(rows, texts)]


@torch.no_grad()
def reference_logprobs(
    policy: CausalLMPolicy, texts: Sequence[Text], rows: int, processes: Processes
) -> list[float]:
    """`text_logprobs` of many texts under the reference: the policy as it was loaded, so call it
    before training. `rows` texts at once; the processes share the work."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    mine = order[processes.rank :: processes.count]
    found: list[tuple[int, float]] = []
    starts = range(0, len(mine), rows)
    for start in with_progress(starts, "batches: log-probs of the reference", len(starts)):
        part = mine[start : start + rows]
        found += zip(part, text_logprobs(policy, [texts[i] for i in part]).tolist())
    return [x for _, x in sorted(processes.gather_list(found))]
