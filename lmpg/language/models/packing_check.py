"""Several texts in one row: each attends to itself alone, and its positions start at 0."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lmpg.language.models.architectures import NATS, probe_ids, sliding_window, unknown_layers
from lmpg.language.models.forward.recompute import layers_recomputed
from lmpg.language.models.inputs import accepted, language_inputs, pad_right
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.runtime.sharding import as_forward
from lmpg.settings.section import UserError

Piece = tuple[list[int], list[bool]]


def packed_logprobs(policy: CausalLMPolicy, rows: list[list[Piece]]) -> tuple[Tensor, Tensor]:
    """log π and entropy of all tokens under the loss mask, [N] each, row by row, of rows of texts
    (ids and loss mask, whose first entry is False)."""
    return as_forward(policy, partial(_packed_logprobs, policy, rows))


def _packed_logprobs(policy: CausalLMPolicy, rows: list[list[Piece]]) -> tuple[Tensor, Tensor]:
    device = policy.device
    ids_RL = pad_right([[i for ids, _ in row for i in ids] for row in rows], policy.pad_token_id)
    positions_RL = pad_right([[p for ids, _ in row for p in range(len(ids))] for row in rows], 0)
    owners = [[n for n, (ids, _) in enumerate(row, 1) for _ in ids] for row in rows]
    mask_RL = pad_right([[int(x) for _, loss_mask in row for x in loss_mask] for row in rows], 0)
    target_N = mask_RL.flatten().nonzero().squeeze(1).to(device)
    arguments = {
        "input_ids": ids_RL.to(device),
        "attention_mask": block_mask(pad_right(owners, 0).to(device)),
        "position_ids": positions_RL.to(device),
    }
    with policy.autocast(), layers_recomputed(policy.trunk):
        hidden_RLD = policy.trunk(**arguments, use_cache=False).last_hidden_state
        # index_select, not x[index]: its backward is deterministic
        hidden_ND = hidden_RLD.flatten(0, 1).index_select(0, target_N - 1)
        ids_N = arguments["input_ids"].flatten().index_select(0, target_N)
        return policy.head.token_logprobs(hidden_ND, ids_N)


def block_mask(owner_RL: Tensor) -> Tensor:
    """Attention mask [R, 1, L, L], added to the scores: 0 where a token may look (earlier ones of
    the same text, itself among them), else the least float. Padding has an owner of its own."""
    same_RLL = owner_RL[:, :, None] == owner_RL[:, None, :]
    allowed_RLL = same_RLL.tril()
    least = torch.finfo(torch.float32).min
    return torch.zeros_like(allowed_RLL, dtype=torch.float32).masked_fill(~allowed_RLL, least)[
        :, None
    ]


def refuse_unpackable(policy: CausalLMPolicy) -> None:
    """UserError unless packed texts have the log-probs that they have alone."""
    config = policy.causal_lm.config.get_text_config()
    if unknown := unknown_layers(config):
        raise _refusal(policy, f"it has layers of {', '.join(unknown)}")
    windows = (sliding_window(config, i) for i in range(config.num_hidden_layers))
    shortest = min((x for x in windows if x), default=policy.context_length)
    if shortest < policy.context_length:
        raise _refusal(policy, f"it has layers with a sliding window of {shortest}")
    if not accepted(policy.trunk, {"position_ids": torch.zeros(1)}):
        raise _refusal(
            policy, "it takes no position ids: the texts of a row would follow each other"
        )
    difference = _difference_together(policy)
    if not difference <= NATS:
        raise _refusal(
            policy, f"its log-probs in a row with another text differ by {difference:.1g}"
        )


def _refusal(policy: CausalLMPolicy, reason: str) -> UserError:
    return UserError(
        f"data.packing does not work with {type(policy.causal_lm).__name__}: {reason}. "
        "Set data.packing to False"
    )


@torch.no_grad()
def _difference_together(policy: CausalLMPolicy) -> float:
    """Largest difference of log-probs of two texts in one row from those alone, in float32."""
    length = max(2, min(16, policy.context_length // 2))
    texts = probe_ids(policy.causal_lm, 2, length).tolist()
    inputs = language_inputs([t[:1] for t in texts], [t[1:] for t in texts], policy.pad_token_id)
    try:
        with policy.in_float32():
            row = [(text, [False] + [True] * (length - 1)) for text in texts]
            together, _ = packed_logprobs(policy, [row])
            alone = policy.evaluate({name: x.to(policy.device) for name, x in inputs.items()})
    except Exception as error:  # whatever a model's code does with a mask that it does not know
        raise _refusal(policy, f"it fails on such rows ({error})") from error
    return float((together - alone.logprobs_BT.flatten()).abs().max())
