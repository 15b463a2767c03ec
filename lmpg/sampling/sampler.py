"""Responses from a policy: a cached decode loop over the transformers forward."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lmpg.models.inputs import accepted, mask_and_positions, pad_left
from lmpg.models.policy import CausalLMPolicy
from lmpg.sampling.inversion import tokens_at, truncated


@dataclass(frozen=True)
class Samples:
    """B responses, prompt-major, with what was recorded while they were sampled (0 in padding).

    finished_B: ended by an EOS token, which is part of the response and a chosen step.
    """

    inputs: dict[str, Tensor]
    mask_BT: Tensor
    logprobs_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor | None
    finished_B: Tensor

    def rows(self, index: Tensor) -> Samples:
        """The same with only the rows in `index` (int64 [N]), in that order."""

        def picked(x):
            if isinstance(x, dict):
                return {name: picked(value) for name, value in x.items()}
            return None if x is None else x.index_select(0, index.to(x.device))

        return Samples(*(picked(getattr(self, field.name)) for field in fields(self)))


class Sampler:
    """Samples at most `max_new_tokens` per response, fewer where the model's context ends.

    With top_k or top_p tokens are drawn from fewer; what is recorded is of the whole distribution.
    """

    def __init__(
        self, policy: CausalLMPolicy, max_new_tokens: int, top_k: int = 0, top_p: float = 1.0
    ):
        self.policy = policy
        self.max_new_tokens = max_new_tokens
        self.top_k, self.top_p = top_k, top_p
        # Asking which rows have finished waits for a GPU; computing them a while longer is cheaper
        self.check_every = 1 if policy.device.type == "cpu" else 16

    @torch.no_grad()
    def sample(
        self, prompts: list[list[int]], group_size: int, uniforms_BT: Tensor | None
    ) -> Samples:
        """`group_size` responses to each prompt; row b is sample b % G of prompt b // G.

        uniforms_BT in [0, 1), one per row and step: the same number gives the same token in any
        batch. None takes the likeliest token.
        """
        limits_B = self._limits(prompts).repeat_interleave(group_size)
        if uniforms_BT is not None:
            self._check_uniforms(uniforms_BT, len(limits_B))
            uniforms_BT = uniforms_BT.to(self.policy.device)
        with self.policy.autocast():
            decoding = _Decoding(self.policy, prompts, group_size, limits_B)
            for step in range(int(limits_B.max())):
                uniforms_B = None if uniforms_BT is None else uniforms_BT[:, step]
                decoding.choose(uniforms_B, self.top_k, self.top_p)
                if (step + 1) % self.check_every == 0 and not decoding.drop_finished():
                    break
                if step + 1 < int(limits_B.max()):
                    decoding.advance()
        return decoding.samples(prompts, group_size)

    def _limits(self, prompts: list[list[int]]) -> Tensor:
        """Tokens that fit after each prompt."""
        if not prompts:
            raise ValueError("there are no prompts to sample from")
        room = [self.policy.context_length - len(ids) for ids in prompts]
        for i, (ids, left) in enumerate(zip(prompts, room)):
            if not ids or left < 1:
                raise ValueError(
                    f"prompt {i} has {len(ids)} tokens, expected 1 to "
                    f"{self.policy.context_length - 1}, which leaves room for a response in the "
                    f"model's context of {self.policy.context_length}"
                )
        return torch.tensor([min(left, self.max_new_tokens) for left in room])

    def _check_uniforms(self, uniforms_BT: Tensor, rows: int) -> None:
        if uniforms_BT.shape[0] != rows or uniforms_BT.shape[1] < self.max_new_tokens:
            raise ValueError(
                f"uniforms_BT has shape {tuple(uniforms_BT.shape)}, expected "
                f"({rows}, {self.max_new_tokens}): one number per row and step"
            )


class _Decoding:
    """The state of one batch: the cache of the R rows still going, the record of all B rows."""

    def __init__(
        self, policy: CausalLMPolicy, prompts: list[list[int]], group_size: int, limits_B: Tensor
    ):
        self._policy, device = policy, policy.device
        self._eos = torch.tensor(policy.eos_token_ids, device=device)
        self._limits_R = self._limits_B = limits_B.to(device)
        self._rows_R = torch.arange(len(limits_B), device=device)
        self._going_R = torch.ones(len(limits_B), dtype=torch.bool, device=device)
        self._step = 0
        shape = (len(limits_B), int(limits_B.max()))
        self._ids_BT = torch.zeros(shape, dtype=torch.long, device=device)
        self._logprobs_BT = torch.zeros(shape, device=device)
        self._entropy_BT = torch.zeros(shape, device=device)
        self._values_BT = torch.zeros(shape, device=device)
        self._cache: Any = DynamicCache(config=policy.causal_lm.config)
        self._prefill(prompts, group_size, steps=shape[1])

    def _prefill(self, prompts: list[list[int]], group_size: int, steps: int) -> None:
        """Each distinct prompt goes through the model once; all its rows share the result."""
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        device = self._policy.device
        ids_PL = pad_left(list(distinct), self._policy.pad_token_id).to(device)
        lengths_P = torch.tensor([len(ids) for ids in distinct], device=device)
        end_P = torch.full_like(lengths_P, ids_PL.shape[1])
        mask_PL, positions_PL = mask_and_positions(end_P - lengths_P, end_P, ids_PL.shape[1])
        hidden_PLD = self._forward(ids_PL, mask_PL, positions_PL)
        prompt_B = torch.tensor([distinct[tuple(ids)] for ids in prompts], device=device)
        prompt_B = prompt_B.repeat_interleave(group_size)
        self._cache.reorder_cache(prompt_B)
        self._hidden_RD = hidden_PLD[:, -1].index_select(0, prompt_B)
        self._position_R = lengths_P.index_select(0, prompt_B)
        mask_BL = mask_PL.index_select(0, prompt_B)
        self._mask_RL = torch.cat([mask_BL, mask_BL.new_ones(len(prompt_B), steps)], 1)
        self._prompt_width = ids_PL.shape[1]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        trunk = self._policy.trunk
        arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        output = trunk(**accepted(trunk, arguments), past_key_values=self._cache, use_cache=True)
        return output.last_hidden_state

    def choose(self, uniforms_B: Tensor | None, top_k: int, top_p: float) -> None:
        """The next token of every row still going, and what is recorded of it."""
        logits_RV = self._policy.head.logits(self._hidden_RD)
        logp_RV = logits_RV.log_softmax(1)
        probs_RV = logp_RV.exp()
        if uniforms_B is None:
            tokens_R = logits_RV.argmax(1)
        else:
            drawn_from_RV = truncated(probs_RV, top_k, top_p)
            tokens_R = tokens_at(drawn_from_RV, uniforms_B.index_select(0, self._rows_R))
        at = (self._rows_R, self._step)
        self._ids_BT[at] = tokens_R
        self._logprobs_BT[at] = logp_RV.gather(1, tokens_R[:, None])[:, 0]
        self._entropy_BT[at] = -(probs_RV * logp_RV).sum(1)
        if self._policy.value_head is not None:
            self._values_BT[at] = self._policy.values(self._hidden_RD)
        self._step += 1
        self._tokens_R = tokens_R
        self._going_R = self._going_R & ~self._ends(tokens_R) & (self._limits_R > self._step)

    def _ends(self, tokens: Tensor) -> Tensor:
        return (tokens[..., None] == self._eos).any(-1)

    def drop_finished(self) -> bool:
        """Rows that finished leave the batch; False when none is left."""
        if bool(self._going_R.all()):
            return True
        keep = self._going_R.nonzero()[:, 0]
        for name in ("_rows_R", "_going_R", "_limits_R", "_tokens_R", "_position_R", "_mask_RL"):
            setattr(self, name, getattr(self, name).index_select(0, keep))
        self._cache.reorder_cache(keep)
        return len(keep) > 0

    def advance(self) -> None:
        """Feed the chosen tokens to the model."""
        mask_RL = self._mask_RL[:, : self._prompt_width + self._step]
        # a finished row that has not left yet must not run out of the model's positions
        positions_R = self._position_R.clamp(max=self._policy.context_length - 1)
        hidden_R1D = self._forward(self._tokens_R[:, None], mask_RL, positions_R[:, None])
        self._hidden_RD = hidden_R1D[:, -1]
        self._position_R = self._position_R + 1

    def samples(self, prompts: list[list[int]], group_size: int) -> Samples:
        """What was recorded, cut after each row's first EOS token or at its limit."""
        ends_BT = self._ends(self._ids_BT[:, : self._step])
        first_B = torch.where(ends_BT.any(1), ends_BT.int().argmax(1), self._step)
        finished_B = first_B < self._limits_B
        lengths_B = torch.where(finished_B, first_B + 1, self._limits_B)
        num_steps = int(lengths_B.max())
        mask_BT = torch.arange(num_steps, device=lengths_B.device) < lengths_B[:, None]

        def recorded(x_BT: Tensor, padding: int = 0) -> Tensor:
            return x_BT[:, :num_steps].masked_fill(~mask_BT, padding)

        pad = self._policy.pad_token_id
        prompts = [ids for ids in prompts for _ in range(group_size)]
        inputs = {
            "prompt_ids": pad_left(prompts, pad).to(mask_BT.device),
            "prompt_lengths": torch.tensor([len(ids) for ids in prompts], device=mask_BT.device),
            "response_ids": recorded(self._ids_BT, pad),
            "response_lengths": lengths_B,
        }
        has_values = self._policy.value_head is not None
        return Samples(
            inputs,
            mask_BT,
            recorded(self._logprobs_BT),
            recorded(self._entropy_BT),
            recorded(self._values_BT) if has_values else None,
            finished_B,
        )
