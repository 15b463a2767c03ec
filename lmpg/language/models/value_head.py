"""The critic: one linear layer on the policy's trunk, saved beside the model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lmpg.settings.section import UserError

FILE = "value_head.safetensors"


def new_value_head(hidden_size: int) -> nn.Linear:
    """A float32 linear layer that says 0 everywhere."""
    head = nn.utils.skip_init(nn.Linear, hidden_size, 1, dtype=torch.float32)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def save_value_head(head: nn.Linear, folder: Path | str) -> None:
    """Write value_head.safetensors into `folder`."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in head.named_parameters()}
    save_file(tensors, Path(folder) / FILE)


def load_value_head(folder: Path | str) -> nn.Linear:
    """The value head saved in `folder`, bit for bit; anything else in the file is refused."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(
            f"there is no {path}; expected the value head that a run with a critic saved"
        )
    tensors = load_file(path)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if set(shapes) != {"weight", "bias"} or shapes["bias"] != (1,) or shapes["weight"][:1] != (1,):
        raise UserError(f"{path} holds {shapes}, expected weight (1, hidden size) and bias (1,)")
    head = new_value_head(shapes["weight"][1])
    head.load_state_dict(tensors)
    return head
