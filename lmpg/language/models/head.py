"""The head: log-probabilities from hidden states, without holding the logits of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmpg.functional.divergence import HeadOutputs, generalised_jsd
from lmpg.functional.logprobs import IMPOSSIBLE, LogitShape, head_logits, token_logprobs
from lmpg.language.models.architectures import NATS, logit_scale_and_softcap, probe_ids
from lmpg.language.models.decoder_parts import in_use
from lmpg.language.models.forward.readable import refuse_unreadable
from lmpg.settings.section import UserError

_LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
"""Elements of [chunk, V]: what a CPU's cache holds is computed fastest."""
_ROWS_AT_ONCE = 128
"""At least, as each chunk reads the whole weight."""
KEPT = 2**26
"""Probabilities kept for the backward pass where there are no more: at most 256 MiB."""


class Head:
    """Log-probabilities from hidden states, as `causal_lm` would compute them from its logits.

    Not a module: it owns nothing, the weights are the model's.
    """

    def __init__(
        self, causal_lm: PreTrainedModel, temperature: float, absent_ids: Tensor | None = None
    ):
        """absent_ids: ids that no token has, as vocabularies are padded; their probability is 0."""
        self.kept = KEPT
        self._layer: Any = causal_lm.get_output_embeddings()
        self.early: tuple[Sequence[int], int] = ((), 0)
        self._early_shape = LogitShape()
        self._shape = LogitShape(
            temperature, *logit_scale_and_softcap(causal_lm.config), absent_ids
        )
        if type(self._linear) is not nn.Linear:
            raise UserError(
                f"{type(causal_lm).__name__} has no plain linear output layer (found "
                f"{type(self._linear).__name__}), expected a causal language model whose logits "
                "are a linear layer of its hidden states; leave the head out of "
                "model.lora.target_modules, or choose another model.path"
            )

    @property
    def _linear(self) -> nn.Linear:
        return in_use(self._layer)

    @property
    def input_size(self) -> int:
        """How many numbers of a hidden state the output layer reads."""
        return self._linear.weight.shape[1]

    @property
    def shape(self) -> LogitShape:
        """What happens to the output layer's products, on the device where that is."""
        absent, device = self._shape.absent, self._linear.weight.device
        if absent is not None and absent.device != device:
            self._shape = replace(self._shape, absent=absent.to(device))
        return self._shape

    def forbid_early(self, ids: Sequence[int], num_steps: int) -> None:
        """From now on, the probability of `ids` is 0 in the first steps of a response, `num_steps`
        of them: wherever the step is given."""
        absent, weight = self.shape.absent, self._linear.weight
        forbidden = torch.tensor(list(ids), dtype=torch.long, device=weight.device)
        forbidden = forbidden if absent is None else torch.cat([absent, forbidden]).unique()
        self.early, self._early_shape = (ids, num_steps), replace(self.shape, absent=forbidden)

    def possible(self, logits_TV: Tensor) -> Tensor:
        """Logits of a response's steps, in which what cannot come has probability 0; overwrites
        them."""
        self.shape.possible(logits_TV)
        self._early_shape.possible(logits_TV[: self.early[1]])
        return logits_TV

    def bar_early(self, logits_RV: Tensor, step: Tensor) -> Tensor:
        """Logits of rows that are all at the same step (int64 [1]), in which what cannot come yet
        has probability 0; overwrites them, and asks the host for nothing."""
        forbidden = self._early_shape.absent
        if self.early[1] and forbidden is not None:
            early = step < self.early[1]
            barred = logits_RV.index_select(1, forbidden).masked_fill(early, IMPOSSIBLE)
            logits_RV.index_copy_(1, forbidden, barred)
        return logits_RV

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] after temperature, float32."""
        return head_logits(hidden_ND, self._linear.weight, self._linear.bias, self.shape)

    def token_logprobs(
        self, hidden_ND: Tensor, ids_N: Tensor, step_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p of each id and the entropy of its distribution, [N] each, in chunks.

        step_N: which step of its response each token is.
        """
        weight, bias = self._linear.weight, self._linear.bias

        def of(rows: Tensor | None, early: bool) -> tuple[Tensor, Tensor]:
            hidden, ids = _picked(hidden_ND, rows), _picked(ids_N, rows)
            return token_logprobs_of(hidden, weight, ids, bias, self._shape_of(early), self.kept)

        logprobs_N, entropy_N = self._by_step(step_N, of)
        return logprobs_N, entropy_N

    def divergence(
        self,
        hidden_ND: Tensor,
        teacher: Head,
        teacher_hidden_ND: Tensor,
        *,
        beta: float,
        step_N: Tensor | None = None,
    ) -> Tensor:
        """The generalised JSD of each distribution to the teacher's, [N], in chunks."""
        at_once = rows_at_once(hidden_ND.device.type, len(self._linear.weight))

        def of(rows: Tensor | None, early: bool) -> tuple[Tensor]:
            mine = self._outputs(_picked(hidden_ND, rows), early)
            theirs = teacher._outputs(_picked(teacher_hidden_ND, rows), early)
            return (generalised_jsd(mine, theirs, beta, at_once),)

        return self._by_step(step_N, of)[0]

    def _by_step(
        self, step_N: Tensor | None, of: Callable[[Tensor | None, bool], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """`of` all tokens; apart of those in early steps and in others, where these differ."""
        if not self.early[1] or step_N is None:
            return of(None, False)
        early_N = step_N < self.early[1]
        rows = [early_N.nonzero()[:, 0], (~early_N).nonzero()[:, 0]]
        parts = [of(x, early) for x, early in zip(rows, (True, False)) if len(x)]
        place_N = torch.cat(rows).argsort()
        return tuple(torch.cat(part).index_select(0, place_N) for part in zip(*parts))

    def _shape_of(self, early: bool) -> LogitShape:
        return self._early_shape if early else self.shape

    def _outputs(self, hidden_ND: Tensor, early: bool) -> HeadOutputs:
        weight, bias = self._linear.weight, self._linear.bias
        return HeadOutputs(hidden_ND, weight, bias, self._shape_of(early))


def _picked(x_N: Tensor, rows: Tensor | None) -> Tensor:
    # index_select, not x[index]: its backward is deterministic
    return x_N if rows is None else x_N.index_select(0, rows)


def rows_at_once(device: str, vocabulary: int) -> int:
    """Rows of logits that suit the device."""
    return max(_ROWS_AT_ONCE, _LOGITS_AT_ONCE.get(device, 2**24) // vocabulary)


def token_logprobs_of(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_N: Tensor,
    bias_V: Tensor | None = None,
    shape: LogitShape = LogitShape(),  # noqa: B008
    kept: int = KEPT,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` in chunks of a size that suits the device."""
    rows = rows_at_once(hidden_ND.device.type, len(weight_VD))
    rest = (shape.temperature, rows, shape.scale, shape.softcap, kept, shape.absent)
    return token_logprobs(hidden_ND, weight_VD, bias_V, ids_N, *rest)


@torch.no_grad()
def refuse_unknown_head(policy) -> None:
    """UserError unless the policy's model can be read, and its log-probs are those of the model's
    own logits, in float32: bfloat16 moves those of unlikely tokens by more than some heads would.
    """
    refuse_unreadable(policy)
    ids, lengths = probe_ids(policy.causal_lm, 1, 8), torch.tensor([4])
    inputs = {
        "prompt_ids": ids[:, :4],
        "prompt_lengths": lengths,
        "response_ids": ids[:, 4:],
        "response_lengths": lengths,
    }
    inputs = {name: value.to(policy.device) for name, value in inputs.items()}
    with policy.in_float32():
        found = policy.evaluate(inputs).logprobs_BT
        difference = float((found - policy.plain_logprobs(inputs)).abs().max())
    if math.isnan(difference):
        raise UserError(
            f"model.path: the log-probs of {type(policy.causal_lm).__name__} are NaN, expected "
            "numbers: its weights hold NaN or infinities, or sampling.temperature = "
            f"{policy.temperature} is too small for the size of its logits"
        )
    # a temperature below 1 magnifies logits, and with them their rounding
    difference *= min(1.0, policy.temperature)
    if difference > NATS:
        raise UserError(
            f"model.path: {type(policy.causal_lm).__name__} changes hidden states before its "
            "output layer, or logits after it, in a way that lmpg does not know (log-probs differ "
            f"by {difference:.3g}); expected a linear output layer, with logit_scale, "
            "lm_head_multiplier, logits_scaling or final_logit_softcapping at most; choose another"
        )
