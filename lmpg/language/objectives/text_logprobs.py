"""What a policy thinks of the learned tokens of given texts."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from lmpg.language.data.texts import Text
from lmpg.language.models.inputs import language_inputs, pad_right
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.runtime.processes import Processes
from lmpg.types import Evaluation


def evaluated_texts(policy: CausalLMPolicy, texts: list[Text]) -> tuple[Evaluation, Tensor]:
    """The policy's view of everything from the first learned token on, and which of it is learned:
    bool [B, T]."""
    inputs = language_inputs(
        [text.ids[: text.start] for text in texts],
        [text.ids[text.start :] for text in texts],
        policy.pad_token_id,
    )
    learned = [list(map(int, text.learned[text.start :])) for text in texts]
    mask_BT = pad_right(learned, 0).bool().to(policy.device)
    return policy.evaluate(inputs), mask_BT


def text_logprobs(policy: CausalLMPolicy, texts: list[Text]) -> Tensor:
    """Σ log π over the learned tokens of each text, [B]."""
    new, mask_BT = evaluated_texts(policy, texts)
    return torch.where(mask_BT, new.logprobs_BT, 0).sum(1)


def num_learned(texts: list[Text]) -> Tensor:
    """How many tokens of each text are learned, float32 [B]."""
    return torch.tensor([float(sum(text.learned)) for text in texts])


@torch.no_grad()
def shared_out_logprobs(
    policy: CausalLMPolicy, texts: list[Text], rows: int, processes: Processes
) -> list[float]:
    """`text_logprobs` of many texts, `rows` at once, each computed by one of the processes."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    mine = order[processes.rank :: processes.count]
    found: list[tuple[int, float]] = []
    for start in range(0, len(mine), rows):
        part = mine[start : start + rows]
        found += zip(part, text_logprobs(policy, [texts[i] for i in part]).tolist())
    return [x for _, x in sorted(processes.gather_list(found))]


def reference_logprobs(
    policy: CausalLMPolicy, texts: list[Text], rows: int, processes: Processes
) -> list[float]:
    """The same under the policy as it was loaded: before any training, without its adapter."""
    adapted = policy.model is not policy.causal_lm
    with policy.without_adapter() if adapted else nullcontext():
        return shared_out_logprobs(policy, texts, rows, processes)
