"""Responses of several turns: rows that go on together, what was read of them kept in a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmpg.language.models.forward.padding import bears_padding
from lmpg.language.models.inputs import language_inputs
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.policy_weights import PolicyWeights, policy_weights
from lmpg.language.sampling.engines.stored import Stored, Unread
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.sampling.samples import DistinctPrompts, Samples

NEW, ANEW = ", each turn from what the last one kept", ", each turn reads its rows anew"


class Turns:
    """The turns of rows, one after the other, by a policy that stays as it is meanwhile.

    A turn reads what is new of a row: on a CPU, and wherever transformers' cache holds every token
    of every layer. By the CUDA engine, and for models that keep another kind of state, it reads the
    whole row: the same numbers up to rounding, for more time.
    """

    def __init__(self, sampler: Sampler, longest: int):
        """longest: tokens that a row has at most, in all its turns."""
        self._sampler, self._policy = sampler, sampler.policy
        self._longest, self._fitting = min(longest, self._policy.context_length), 0
        self._why: str | None = None
        self._weights: PolicyWeights | None = None
        self._stored: dict[int, tuple[int, Stored]] = {}

    @torch.no_grad()
    def sample(
        self,
        rows: Sequence[int],
        texts: list[list[int]],
        limits_R: Tensor,
        uniforms_RT: Tensor | None,
        *,
        last: bool = False,
    ) -> Samples:
        """What the policy appends to each of `texts`, at most limits_R[r] tokens; the others of
        its rows are over. last: whether no turn follows.

        rows: the names of the rows. A text begins with that of the row's last turn and what was
        sampled there. Neither which rows are together nor their order changes a row's tokens.
        """
        length = max(map(len, texts)) + int(limits_R.max())
        self._prepare(length, last)
        own = self._why is None
        if not (self._sampler.keeps_rows if own else bears_padding(self._policy.trunk)):
            samples = self._sampler.answered(texts, 1, limits_R, uniforms_RT)
            self._sampler.backend += ANEW
            return samples
        device, pad = self._policy.device, self._policy.pad_token_id
        prompts = DistinctPrompts.of(texts, 1, pad).to(device)
        engine = self._sampler.engine(self._why, length, self._weights)
        uniforms_RT = None if uniforms_RT is None else uniforms_RT.to(device)
        unread = self._unread(rows, texts)
        decoding = self._sampler.decoded(engine, prompts, limits_R, uniforms_RT, unread, not last)
        samples, stored = decoding.samples(), decoding.stored()
        if not last:
            self._sampler.backend += NEW if stored else ANEW
        lengths = samples.inputs["response_lengths"].tolist()
        self._stored = {
            row: (len(texts[r]) + lengths[r], stored[r])
            for r, row in enumerate(rows)
            if r in stored
        }
        return samples

    def _prepare(self, length: int, last: bool) -> None:
        """Decides on an engine for contexts of `length` tokens and, where it is lmpg's, reads its
        weights: one time, unless rows grow to more than twice what they began with."""
        if length <= self._fitting:
            return
        self._fitting = length if last else min(self._longest, 2 * length)
        why = self._sampler.why_slower(self._fitting)
        if why != self._why:
            self._stored = {}  # engines lay out what they keep in ways of their own
        self._why, self._weights = why, None
        if why is None and self._sampler.keeps_rows:
            self._weights = policy_weights(self._policy, self._fitting)

    def _unread(self, rows: Sequence[int], texts: list[list[int]]) -> Unread | None:
        """What is to be read where anything is stored: not in the first turn."""
        found = [self._stored.get(row, (0, [])) for row in rows]
        if not any(stored for _, stored in found):
            return None
        # of what was given to a row that had ended nothing counts
        known = [min(n, stored[0].shape[2]) if stored else 0 for n, stored in found]
        stored = [stored for _, stored in found]
        return Unread.of(texts, known, stored, self._policy.pad_token_id, self._policy.device)


def samples_of_turns(
    policy: CausalLMPolicy,
    prompts: list[list[int]],
    responses: list[list[int]],
    turns: list[list[tuple[int, int]]],
    recorded: list[tuple[list[int], Samples]],
    finished: list[bool],
) -> Samples:
    """All turns of all rows as samples; the mask holds what the policy wrote, and no more.

    turns: of each row, where in its response each of its turns begins and ends. recorded: of each
    turn the rows that took it, in their order, and what was sampled.
    """
    inputs = _inputs_of_turns(prompts, responses, turns, policy.pad_token_id)
    inputs = {name: x.to(policy.device) for name, x in inputs.items()}
    mask_BT = inputs["response_turns"] > 0

    def spread(name: str) -> Tensor:
        whole_BT = torch.zeros(mask_BT.shape, device=policy.device)
        for number, (rows, samples) in enumerate(recorded):
            starts = [turns[b][number][0] for b in rows]
            row_N, step_N = samples.mask_BT.nonzero(as_tuple=True)
            first_R, place_R = (torch.tensor(x, device=policy.device) for x in (starts, rows))
            places = place_R[row_N], first_R[row_N] + step_N
            whole_BT = whole_BT.index_put(places, getattr(samples, name)[samples.mask_BT])
        return whole_BT

    return Samples(
        inputs,
        mask_BT,
        spread("logprobs_BT"),
        spread("entropy_BT"),
        None if policy.value_head is None else spread("values_BT"),
        torch.tensor(finished, device=policy.device),
    )


def _inputs_of_turns(
    prompts: list[list[int]],
    responses: list[list[int]],
    turns: list[list[tuple[int, int]]],
    pad_token_id: int,
) -> dict[str, Tensor]:
    inputs = language_inputs(prompts, responses, pad_token_id)
    shape = len(prompts), max(1, inputs["response_ids"].shape[1])
    if not inputs["response_ids"].numel():  # every row was lost before its first turn
        inputs["response_ids"] = torch.full(shape, pad_token_id)
    inputs["response_turns"] = torch.zeros(shape, dtype=torch.long)
    for b, places in enumerate(turns):
        for number, (start, end) in enumerate(places, 1):
            inputs["response_turns"][b, start:end] = number
    return inputs
