"""Critics: a value head on the policy's own trunk, or a trunk with a value head of its own."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmpg.language.models.architectures import trunk_of
from lmpg.language.models.forward.response_states import response_states
from lmpg.language.models.precision import save_folder
from lmpg.language.models.start.four_bits import refuse_packed
from lmpg.settings.section import UserError

FOLDER = "critic"
"""Of a separate critic, in the policy's folder."""
VALUE_HEAD_FILE = "value_head.safetensors"


class SeparateCritic(nn.Module):
    """A trunk, trained as a whole, and a value head on it; `kind` says what it started as."""

    def __init__(self, trunk: nn.Module, head: nn.Linear, kind: str = "separate"):
        super().__init__()
        refuse_packed(trunk, "a critic with weights of its own", "set model.critic to shared")
        self.kind = kind
        self.trunk = trunk
        self.head = head

    def values(self, inputs: dict[str, Tensor]) -> Tensor:
        """V of the state before each response token, [B, T], float32, 0 in padding."""
        states = response_states(self.trunk, inputs)
        with torch.autocast(states.hidden_ND.device.type, enabled=False):
            return states.spread(self.head(states.hidden_ND.float()).squeeze(-1))

    def save_pretrained(self, folder: Path, tokenizer, dtype: torch.dtype = torch.float32) -> None:
        """The trunk as a folder that transformers' AutoModel loads, the value head beside it."""
        save_folder(folder, self.trunk, tokenizer, dtype)
        save_value_head(self.head, folder)


def critic_like(model: PreTrainedModel) -> SeparateCritic:
    """A copy of a causal LM's trunk, with a value head that says 0 everywhere."""
    trunk = copy.deepcopy(trunk_of(model))
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


def new_value_head(hidden_size: int) -> nn.Linear:
    """A float32 linear layer that says 0 everywhere."""
    head = nn.utils.skip_init(nn.Linear, hidden_size, 1, dtype=torch.float32)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def value_head_of(path: str | None, model: PreTrainedModel) -> nn.Linear:
    """The value head that was saved with `model` at `path`; a new one where none was."""
    folder = Path(str(path)).expanduser()
    hidden_size = model.get_output_embeddings().weight.shape[1]
    if not (folder / VALUE_HEAD_FILE).is_file():
        return new_value_head(hidden_size)
    return load_value_head(folder, hidden_size)


def save_value_head(head: nn.Linear, folder: Path | str) -> None:
    """Write value_head.safetensors into `folder`."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in head.named_parameters()}
    save_file(tensors, Path(folder) / VALUE_HEAD_FILE)


def load_value_head(folder: Path | str, hidden_size: int | None = None) -> nn.Linear:
    """The value head saved in `folder`, bit for bit; anything else in the file is refused."""
    path = Path(folder) / VALUE_HEAD_FILE
    if not path.is_file():
        raise UserError(
            f"there is no {path}; expected the value head that a run with a critic saved"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} is no whole safetensors file ({error}), expected the value head that a run "
            "with a critic saved; copy it again, or remove it to start a new one"
        ) from None
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if set(shapes) != {"weight", "bias"} or shapes["bias"] != (1,) or shapes["weight"][:1] != (1,):
        raise UserError(f"{path} holds {shapes}, expected weight (1, hidden size) and bias (1,)")
    found = shapes["weight"][1]
    if hidden_size not in (None, found):
        raise UserError(
            f"{path} reads {found} features, expected {hidden_size}, the model's hidden size; "
            "remove the file to start a new value head"
        )
    head = new_value_head(found)
    head.load_state_dict(tensors)
    return head
