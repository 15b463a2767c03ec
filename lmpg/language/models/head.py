"""The model's own logits, taken apart into trunk, output embedding and logit shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmpg.functional.logprobs import LogitShape, head_logits, token_logprobs
from lmpg.settings.section import UserError

_LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
"""Elements of [chunk, V]: what a CPU's cache holds is computed fastest."""
_ROWS_AT_ONCE = 128
"""At least, as each chunk reads the whole weight."""
_KEPT = 2**26
"""Probabilities kept for the backward pass where there are no more: at most 256 MiB."""


class Head:
    """Log-probabilities from hidden states, as `causal_lm` would compute them from its logits.

    Not a module: it owns nothing, the weights are the model's.
    """

    def __init__(self, causal_lm: PreTrainedModel, temperature: float):
        self._linear = causal_lm.get_output_embeddings()
        self._shape = LogitShape(temperature, *_scale_and_softcap(causal_lm.config))
        if type(self._linear) is not nn.Linear:
            raise UserError(
                f"{type(causal_lm).__name__} has no plain linear output layer (found "
                f"{type(self._linear).__name__}), expected a causal language model whose logits "
                "are a linear layer of its hidden states; leave the head out of "
                "model.lora.target_modules, or choose another model.path"
            )

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] after temperature, float32."""
        return head_logits(hidden_ND, self._linear.weight, self._linear.bias, self._shape)

    def token_logprobs(self, hidden_ND: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each id and the entropy of its distribution, [N] each, in chunks."""
        weight, bias = self._linear.weight, self._linear.bias
        return token_logprobs_of(hidden_ND, weight, ids_N, bias, self._shape)


def token_logprobs_of(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_N: Tensor,
    bias_V: Tensor | None = None,
    shape: LogitShape = LogitShape(),  # noqa: B008
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` in chunks of a size that suits the device."""
    at_once = _LOGITS_AT_ONCE.get(hidden_ND.device.type, 2**24)
    rows = max(_ROWS_AT_ONCE, at_once // len(weight_VD))
    rest = (shape.temperature, rows, shape.scale, shape.softcap, _KEPT)
    return token_logprobs(hidden_ND, weight_VD, bias_V, ids_N, *rest)


def _scale_and_softcap(config) -> tuple[float, float | None]:
    """What Cohere, Falcon-H1 (factors), Granite (divisor) and Gemma (softcap) do to logits."""
    config = config.get_text_config()
    scale = 1.0
    for factor in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, factor, None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return scale, getattr(config, "final_logit_softcapping", None)


def refuse_unknown_head(policy) -> None:
    """UserError unless the policy's log-probs are those of the model's own logits."""
    vocabulary = policy.causal_lm.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 9)[None] * 7919 % vocabulary
    lengths = torch.tensor([4])
    inputs = {
        "prompt_ids": ids[:, :4],
        "prompt_lengths": lengths,
        "response_ids": ids[:, 4:],
        "response_lengths": lengths,
    }
    inputs = {name: value.to(policy.device) for name, value in inputs.items()}
    with torch.no_grad():
        found = policy.evaluate(inputs).logprobs_BT
    deviation = float((found - policy.plain_logprobs(inputs)).abs().max())
    if not deviation <= (0.1 if policy.bf16 else 1e-3):
        raise UserError(
            f"model.path: {type(policy.causal_lm).__name__} changes its logits after the output "
            f"layer in a way that lmpg does not know (log-probs differ by {deviation:.3g}); "
            "expected a linear output layer, with logit_scale, lm_head_multiplier, logits_scaling "
            "or final_logit_softcapping at most; choose another model"
        )
