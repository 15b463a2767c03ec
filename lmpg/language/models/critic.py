"""A critic with weights of its own, which shares nothing with the policy."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmpg.language.models.folders import save_folder
from lmpg.language.models.forward.response_states import response_states
from lmpg.language.models.value_head import new_value_head, save_value_head
from lmpg.settings.section import UserError

FOLDER = "critic"


class SeparateCritic(nn.Module):
    """A trunk, trained as a whole, and a value head on it; `kind` says what it started as."""

    def __init__(self, trunk: nn.Module, head: nn.Linear, kind: str = "separate"):
        super().__init__()
        self.kind = kind
        self.trunk = trunk
        self.head = head

    def values(self, inputs: dict[str, Tensor]) -> Tensor:
        """V of the state before each response token, [B, T], float32, 0 in padding."""
        states = response_states(self.trunk, inputs)
        with torch.autocast(states.hidden_ND.device.type, enabled=False):
            return states.spread(self.head(states.hidden_ND.float()).squeeze(-1))

    def save_pretrained(self, folder: Path, tokenizer) -> None:
        """The trunk as a folder that transformers' AutoModel loads, the value head beside it."""
        save_folder(folder, self.trunk, tokenizer)
        save_value_head(self.head, folder)


def critic_like(model: PreTrainedModel) -> SeparateCritic:
    """A copy of a causal LM's trunk, with a value head that says 0 everywhere."""
    trunk = copy.deepcopy(model.base_model)
    return SeparateCritic(trunk, new_value_head(model.get_output_embeddings().weight.shape[1]))


def critic_from_classifier(path: str, model: nn.Module) -> SeparateCritic:
    """The critic whose values are at first the scores of a reward model."""
    score, trunk = getattr(model, "score", None), getattr(model, "base_model", model)
    if not isinstance(score, nn.Linear) or trunk is model:
        raise UserError(
            f"model.critic = reward_model, but rewards.models: {path} "
            f"({type(model).__name__}) has no linear `score` layer on its trunk, expected a "
            "decoder with one label. Set model.critic to separate"
        )
    head = new_value_head(score.in_features)
    with torch.no_grad():
        head.weight.copy_(score.weight)
        if score.bias is not None:
            head.bias.copy_(score.bias)
    return SeparateCritic(trunk, head, "reward_model")
