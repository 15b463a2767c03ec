"""A causal language model as a policy over tokens, with an optional critic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmpg.language.models.architectures import trunk_of
from lmpg.language.models.critic import FOLDER, SeparateCritic, save_value_head
from lmpg.language.models.forward.kept_weights import copies_in, is_low, keep_frozen, widened
from lmpg.language.models.forward.recompute import recompute_layers
from lmpg.language.models.forward.response_states import ResponseStates, response_states
from lmpg.language.models.forward.reuse import ForwardReuse
from lmpg.language.models.head import Head
from lmpg.language.models.inputs import unpadded_rows
from lmpg.language.models.lora import save_adapter_and_merged
from lmpg.language.models.precision import in_float32, num_weights, save_folder
from lmpg.language.models.reference import Reference
from lmpg.language.models.start.shared_out import copy_of
from lmpg.runtime.parts import load_weights
from lmpg.runtime.sharding import as_forward, bare, held, whole_copy
from lmpg.types import Evaluation

_FEW = 50_000_000
"""Weights, a copy of which nobody misses the memory of."""


class CausalLMPolicy(nn.Module):
    """π(token | prompt, tokens before it) of a transformers or peft model; always in eval mode.

    value_head: a critic on the policy's own trunk. critic: one with weights of its own.
    temperature divides the logits, everywhere. bf16 computes in autocast over fp32 weights; tf32
    says that the device rounds the factors of fp32 products.
    frozen_dtype, saved_dtype: what a reference is kept in, and what is saved; low: whether weights
    of the policy are kept in bfloat16 themselves.
    absent_ids: token ids that no token has (int64), whose probability is 0 everywhere.
    forward_reuse: caches a forward for the update, once `keep_forward` was asked for. teacher: whom
    it learns from, and the β of the divergence, see `learn_from`.
    """

    def __init__(
        self,
        model: nn.Module,
        value_head: nn.Linear | None,
        *,
        temperature: float,
        eos_token_ids: tuple[int, ...],
        pad_token_id: int,
        context_length: int,
        bf16: bool = False,
        tf32: bool = False,
        frozen_dtype: torch.dtype = torch.float32,
        saved_dtype: torch.dtype = torch.float32,
        critic: SeparateCritic | None = None,
        absent_ids: Tensor | None = None,
    ):
        super().__init__()
        self.model = model
        self.value_head = value_head
        self.critic = critic
        self.temperature = temperature
        self.eos_token_ids = eos_token_ids
        self.pad_token_id = pad_token_id
        self.context_length = context_length
        self.bf16, self.tf32 = bf16, tf32
        self.frozen_dtype, self.saved_dtype = frozen_dtype, saved_dtype
        self.low = is_low(model)
        self.head = Head(self.causal_lm, temperature, absent_ids)
        self.forward_reuse: ForwardReuse | None = None
        self.teacher: tuple[Reference, float] | None = None
        self.train(False)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, with any adapter inside its layers."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "peft_config") else model

    @property
    def trunk(self) -> nn.Module:
        """The model without its output layer."""
        return trunk_of(self.causal_lm)

    def recompute_layers(self, asked: bool = True) -> None:
        """From now on keep no inner results of layers and head, but compute them again."""
        if not asked:
            return
        recompute_layers(self.trunk)
        if self.critic is not None:
            recompute_layers(self.critic.trunk)
        self.head.kept = 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def rounds(self) -> str | None:
        """What factors are rounded to, as sampler and update then differ: bf16, TF32 or None."""
        return "bf16" if self.bf16 else "TF32" if self.tf32 else None

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Stays in eval mode: dropout would make old and new log-probs incomparable."""
        return super().train(False)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision that sampling and evaluation compute in, whatever weights are kept in, and
        wherever."""
        chosen = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        with held(self), chosen, widened(self.low):
            yield

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """A block in which all that the policy computes is float32, for probes that judge it."""
        rounds, (self.bf16, self.tf32) = (self.bf16, self.tf32), (False, False)
        try:
            with held(self), in_float32(self):
                yield
        finally:
            self.bf16, self.tf32 = rounds

    def evaluate(self, inputs: dict[str, Tensor]) -> Evaluation:
        """Log-probs, entropy and values of the response tokens, and while learning from a teacher's
        distributions the divergence to these, [B, T] each, float32, 0 in padding."""
        return Evaluation(*as_forward(self, partial(self._evaluation, inputs)))

    def _evaluation(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        states, logprobs_BT, entropy_BT = self._evaluated(inputs)
        divergence_BT = None
        if self.teacher is not None and torch.is_grad_enabled():
            divergence_BT = self._divergence(inputs, states, *self.teacher)
        return logprobs_BT, entropy_BT, self._values(inputs, states), divergence_BT

    def learn_from(self, teacher: Reference, beta: float) -> None:
        """Compare whole distributions with the teacher's from now on, by the generalised JSD."""
        self.teacher = (teacher, beta)

    def logprobs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probs alone; the critic computes nothing."""
        return self._evaluated(inputs)[1]

    def state_values(self, inputs: dict[str, Tensor]) -> Tensor:
        """V of the state before each response token, [B, T]; needs a critic."""
        if self.critic is None:
            with self.autocast():
                states = response_states(self.trunk, inputs)
            return states.spread(self.values(states.hidden_ND))
        critic = self.critic
        with self.autocast():
            return self._reused("values", inputs, lambda: critic.values(inputs))

    def keep_forward(self) -> AbstractContextManager[None]:
        """A block in which forwards are cached, with their graphs, for the next evaluation of the
        same inputs with the same weights."""
        self.forward_reuse = self.forward_reuse or ForwardReuse(self)
        return self.forward_reuse.recording()

    def values(self, hidden: Tensor) -> Tensor:
        """The value head's V of the states that hidden states [..., D] stand for, float32 [...]."""
        assert self.value_head is not None
        with torch.autocast(self.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)

    def _evaluated(self, inputs: dict[str, Tensor]) -> tuple[ResponseStates, Tensor, Tensor]:
        return self._reused("logprobs", inputs, lambda: self._computed(inputs))

    def _reused(self, name: str, inputs: dict[str, Tensor], compute: Callable[[], Any]) -> Any:
        reuse = self.forward_reuse
        return compute() if reuse is None else reuse(name, inputs, compute)

    def _computed(self, inputs: dict[str, Tensor]) -> tuple[ResponseStates, Tensor, Tensor]:
        states = self.states(inputs)
        with self.autocast():
            tokens = states.hidden_ND, states.ids_N, states.step_N
            logprobs_N, entropy_N = self.head.token_logprobs(*tokens)
        return states, states.spread(logprobs_N), states.spread(entropy_N)

    def _values(self, inputs: dict[str, Tensor], states: ResponseStates) -> Tensor | None:
        if self.critic is not None:
            return self.state_values(inputs)
        return None if self.value_head is None else states.spread(self.values(states.hidden_ND))

    def _divergence(
        self, inputs: dict[str, Tensor], states: ResponseStates, teacher: Reference, beta: float
    ) -> Tensor:
        """The generalised JSD between the teacher's next token and the policy's, [B, T]."""
        theirs = teacher.states(inputs)
        with self.autocast():
            both = states.hidden_ND, teacher.head, theirs.hidden_ND
            found_N = self.head.divergence(*both, beta=beta, step_N=states.step_N)
        return states.spread(found_N)

    def states(self, inputs: dict[str, Tensor]) -> ResponseStates:
        """The hidden states before the response tokens."""
        with self.autocast():
            return response_states(self.trunk, inputs)

    @torch.no_grad()
    def plain_logprobs(self, inputs: dict[str, Tensor]) -> Tensor:
        """The slow oracle of `evaluate`: row by row, unpadded, from the model's own full logits."""
        result_BT = torch.zeros(inputs["response_ids"].shape, device=self.device)
        for b, (prompt, response) in enumerate(unpadded_rows(inputs)):
            with self.autocast():
                logits = self.model(input_ids=torch.cat([prompt, response])[None]).logits[0]
            steps = self.head.possible(logits[len(prompt) - 1 : -1].float() / self.temperature)
            logprobs = steps.log_softmax(-1).gather(1, response[:, None])[:, 0]
            result_BT[b, : len(response)] = logprobs
        return result_BT

    @property
    def is_small(self) -> bool:
        """Whether nobody misses the memory that a copy of its model takes."""
        return num_weights(self.model) <= _FEW

    @property
    def reference_is_cheap(self) -> bool:
        """Whether it takes little memory: none with LoRA, a copy of a small model else."""
        return self.model is not self.causal_lm or self.is_small

    def reference(self, refreshed: bool = False) -> Reference:
        """The policy as it is now, frozen; with LoRA the model under the adapter, not copied.

        Call it before the weights of a checkpoint are loaded. refreshed: whether it is to become
        what the policy has learned by then, which only float32 holds.
        """
        return Reference(self, dtype=torch.float32 if refreshed else self.frozen_dtype)

    def frozen(self) -> CausalLMPolicy:
        """Itself, which from now on does not learn; what an adapter has learned stays exact."""
        self.requires_grad_(False)
        if self.model is self.causal_lm:
            keep_frozen(self.model, self.frozen_dtype)
        self.low = is_low(self.model)
        return self

    def frozen_copy(self, dtype: torch.dtype) -> CausalLMPolicy:
        """The policy as it is now, with weights of its own that stay, and without a critic."""
        model = bare(self).model
        found = CausalLMPolicy(
            copy.deepcopy(model, copies_in(dtype, model)),
            None,
            temperature=self.temperature,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
            context_length=self.context_length,
            bf16=self.bf16,
            tf32=self.tf32,
            absent_ids=self.head.shape.absent,
        )
        return copy_of(found, self)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The model that the adapter started from, for the time of the block."""
        model: Any = self.model
        with model.disable_adapter():
            yield

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything the optimizer changes, each tensor once, by parameter name."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Copy in what `trainable_state` returned; names and shapes must be the same."""
        load_weights({n: p for n, p in self.named_parameters() if p.requires_grad}, state)

    def save_pretrained(self, folder: Path | str, tokenizer) -> None:
        """A folder for plain transformers; with LoRA the adapter, and the whole model in merged/.

        The value head lies beside the model in value_head.safetensors; a critic with weights of
        its own is a folder critic/ with a value head of its own.
        """
        with whole_copy(self) as policy:
            policy._save(Path(folder), tokenizer)

    def _save(self, folder: Path, tokenizer: Any) -> None:
        if self.model is self.causal_lm:
            save_folder(folder, self.model, tokenizer, self.saved_dtype)
        else:
            save_adapter_and_merged(self.model, folder, tokenizer, self.saved_dtype)
        if self.value_head is not None:
            save_value_head(self.value_head, folder)
        if self.critic is not None:
            self.critic.save_pretrained(folder / FOLDER, tokenizer, self.saved_dtype)
