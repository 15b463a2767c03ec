"""The policy's weights on their way to servers: through a folder that both sides see, as a whole
model or as an adapter."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmpg.language.models.lora import merged_copy
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import quiet
from lmpg.language.sampling.server.connection import Server, ServerGone
from lmpg.runtime.sharding import whole_copy
from lmpg.settings.section import RunStopped


class FolderTransfer:
    """The whole model in a folder, which servers read again. They need VLLM_SERVER_DEV_MODE=1.

    model: what servers call the model from then on; None leaves its name. can_send: whether this
    process has what it would send. version: of what was written last, where it has a name.
    """

    model: str | None = None
    can_send = True
    version = 0

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder = folder
        self._tokenizer = tokenizer
        self.said = f"through {folder}, which servers must see by the same path"

    def write(self, policy: CausalLMPolicy) -> None:
        """Put the weights of this moment there."""
        with plain_model(policy) as model:
            save(model, self.folder, sent_state(policy, model), self._tokenizer)

    def send(self, server: Server) -> None:
        """Let the server read them. What it has kept of prompts is of the old weights."""
        server.post("/pause?mode=wait")
        try:
            kwargs = {"weights_path": str(self.folder.absolute())}
            server.post("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})
            server.post("/reset_prefix_cache")
        finally:
            server.post("/resume")

    def is_there(self, server: Server) -> bool:
        """Whether the server is known to have them: what it reads it gives no name."""
        return False

    def forget(self, server: Server) -> None:
        """The server may have been started anew; it gets all that it needs by `send`."""


class AdapterTransfer:
    """The policy's LoRA adapter, loaded at run time beside the model that servers have. They need
    --enable-lora, --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""

    can_send = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = f"as a LoRA adapter through {folder}, which servers must see by the same path"
        self.version = 0

    def write(self, policy: CausalLMPolicy) -> None:
        """Put the adapter of this moment there, under a name of its own, as servers keep what they
        know of prompts by the adapter's name."""
        self.version += 1
        with whole_copy(policy) as whole, quiet():
            model: Any = whole.model
            model.save_pretrained(str(self._path(self.version)), save_embedding_layers=False)
        shutil.rmtree(self._path(self.version - 2), ignore_errors=True)

    def send(self, server: Server) -> None:
        """Let the server load it, and forget the one before."""
        for number in (self.version, self.version - 1):  # the same once more after a time-out
            with suppress(RunStopped):
                server.post("/v1/unload_lora_adapter", {"lora_name": _name(number)})
        path = str(self._path(self.version).absolute())
        try:
            body = {"lora_name": self.model, "lora_path": path}
            server.post("/v1/load_lora_adapter", body)
        except RunStopped:
            if not self.is_there(server):  # another process may have been quicker
                raise

    def is_there(self, server: Server) -> bool:
        """Whether the server has it."""
        try:
            models = (server.ask("/v1/models") or {}).get("data") or []
        except ServerGone:
            return False
        return any(model.get("id") == self.model for model in models)

    def forget(self, server: Server) -> None:
        """The server may have been started anew; it gets all that it needs by `send`."""

    @property
    def model(self) -> str:
        """What the newest one is called."""
        return _name(self.version)

    def _path(self, version: int) -> Path:
        return self.folder / _name(version)


def _name(version: int) -> str:
    return f"lmpg-adapter-{version}"


@contextmanager
def plain_model(policy: CausalLMPolicy) -> Iterator[Any]:
    """The policy as one whole model of transformers: itself, or a copy with its adapter merged."""
    with whole_copy(policy) as whole:
        own = whole.model is whole.causal_lm
        yield whole.causal_lm if own else merged_copy(whole.model, torch.float32)


def sent_state(policy: CausalLMPolicy, model: Any) -> dict[str, Tensor]:
    """What a server is given: tensors by name, untied, in the precision that the policy computes
    in."""
    kept = torch.bfloat16 if policy.bf16 else torch.float32
    return {name: x.to(kept) for name, x in untied(model, model.state_dict()).items()}


def untied(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` in which embedding and output layer are two, so that a server whose layers are packed
    gets both."""
    output = model.get_output_embeddings().weight
    names = [name for name, x in model.named_parameters(remove_duplicate=False) if x is output]
    found = dict(state)
    for name in names[1:]:
        found[name] = state[name].clone()
    return found


def save(model: Any, folder: Path, state: dict[str, Tensor], tokenizer: Any) -> None:
    """A folder as `save_pretrained` writes it, of other tensors, whose config says that embedding
    and output layer are two. It is there whole or not at all."""
    fresh = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    config = model.config
    model.config = copy.deepcopy(config)
    model.config.tie_word_embeddings = False
    try:
        with quiet():
            model.save_pretrained(fresh, state_dict=state)
            tokenizer.save_pretrained(fresh)
    finally:
        model.config = config
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
