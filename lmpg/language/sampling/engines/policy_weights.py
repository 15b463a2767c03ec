"""A policy's weights of one moment: its decoder's, its head's and its value head's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmpg.functional.logprobs import LogitShape
from lmpg.language.models.architectures import architecture, unsupported
from lmpg.language.models.decoder_parts import in_use
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.engines.linear import linear
from lmpg.language.sampling.engines.weights import DecodeWeights, Linear, Settle, decode_weights
from lmpg.runtime.sharding import held


@dataclass(frozen=True)
class PolicyWeights:
    """A policy's weights of one moment; its head's product is in their precision."""

    decoder: DecodeWeights
    head: Linear
    shape: LogitShape
    value_head: list[Tensor] | None

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V], float32, temperature applied."""
        shape, dtype = self.shape, self.decoder.dtype
        if shape.softcap is not None:
            return shape.logits(self.head(hidden_RD.to(dtype)))
        scaled_RD = hidden_RD if shape.factor == 1 else hidden_RD * shape.factor
        return shape.possible(self.head(scaled_RD.to(dtype)).float())

    @property
    def values(self) -> Callable[[Tensor], Tensor] | None:
        """V [R] of hidden states, where the critic shares the trunk."""
        head = self.value_head
        return None if head is None else lambda hidden_RD: F.linear(hidden_RD, *head)[:, 0]


def policy_weights(
    policy: CausalLMPolicy, length: int, settle: Settle = lambda _, part: part
) -> PolicyWeights:
    """The weights of `policy` as they are now, for contexts of `length` tokens."""
    with held(policy):
        return _policy_weights(policy, length, settle)


class Reading:
    """Reads a policy's weights anew each time, but once within `once`."""

    def __init__(self, policy: CausalLMPolicy) -> None:
        self._policy = policy
        self.inside = False
        self._known: tuple[int, PolicyWeights] | None = None

    @contextmanager
    def once(self) -> Iterator[None]:
        """A block in which the weights do not change; what is read of them stays for its time."""
        outer, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = outer
            if not outer:
                self._known = None

    def __call__(self, length: int) -> PolicyWeights:
        """The weights for contexts of `length` tokens."""
        if self._known is not None and self._serve(*self._known, length):
            return self._known[1]
        if not self.inside:
            return policy_weights(self._policy, length)
        model, longer = self._policy.causal_lm, min(self._policy.context_length, 2 * length)
        windows = (layer.window or 0 for layer in architecture(model).layers)
        if unsupported(model, longer) or any(length <= x < longer for x in windows):
            longer = length
        self._known = longer, policy_weights(self._policy, longer)  # longer prompts may follow
        return self._known[1]

    def _serve(self, read: int, weights: PolicyWeights, length: int) -> bool:
        """Whether weights for `read` tokens are those for `length`: a window as long as the context
        is none."""
        return length <= read and not any(x >= length for x in weights.decoder.windows)


def _policy_weights(policy: CausalLMPolicy, length: int, settle: Settle) -> PolicyWeights:
    model: Any = policy.causal_lm
    kept = model.get_input_embeddings().weight.dtype
    dtype = torch.bfloat16 if policy.bf16 else torch.promote_types(kept, torch.float32)
    shape = policy.head.shape
    # without a softcap all factors of the logits are one, of the hidden states and of the bias
    head = _head_weights(model, dtype, 1.0 if shape.softcap is not None else shape.factor)
    head = settle(-1, head)
    decoder = decode_weights(model, length, dtype, settle)
    value_head = policy.value_head
    values = None if value_head is None else [x.detach() for x in value_head.parameters()]
    return PolicyWeights(decoder, head, shape, values)


def _head_weights(model: Any, dtype: torch.dtype, factor: float) -> Linear:
    """The model's head; its bias, which is not multiplied with the input, times `factor`."""
    head = in_use(model.get_output_embeddings())
    bias = None if head.bias is None else head.bias.detach() * factor
    return linear(head.weight.detach().to(dtype), None if bias is None else bias.to(dtype))
