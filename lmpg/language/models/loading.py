"""From a Hub id or a folder to tokenizer, policy and reward model, in float32."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from lmpg.language.models.critic import (
    FOLDER,
    VALUE_HEAD_FILE,
    SeparateCritic,
    critic_from_classifier,
    critic_like,
    load_value_head,
    new_value_head,
)
from lmpg.language.models.head import refuse_unknown_head
from lmpg.language.models.lora import with_adapter
from lmpg.language.models.paths import refuse_missing_folder
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import computes_in_bf16, quiet
from lmpg.language.models.settings import ModelSettings
from lmpg.settings.section import UserError

_UNBOUNDED = 2**30


def load_tokenizer(path: str, trust_remote_code: bool = False):
    """The tokenizer of a model; one without an EOS token is refused."""
    load = transformers.AutoTokenizer.from_pretrained
    tokenizer = _loaded("model.path", "tokenizer", load, path, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path = {path}: its tokenizer has no EOS token, expected one, because every "
            "response ends with it. Set it and save the tokenizer: tokenizer.eos_token = '</s>'; "
            "tokenizer.save_pretrained(folder)"
        )
    return tokenizer


def load_policy(
    settings: ModelSettings,
    tokenizer,
    *,
    critic: bool,
    temperature: float,
    device: torch.device | str = "cpu",
    reward_model: str | None = None,
) -> CausalLMPolicy:
    """The model of `settings.path` as a policy; with `critic`, the one that the settings ask for:
    its saved one, one like `reward_model`, or a new one.

    LoRA factors are drawn from torch's global generator, nothing else is random.
    """
    model = load_causal_lm(settings.path, settings.trust_remote_code)
    _refuse_smaller_vocabulary(settings.path, model, tokenizer)
    eos_token_ids = all_eos_token_ids(model, tokenizer)
    pad_token_id = tokenizer.pad_token_id
    lora, shared = settings.lora, settings.critic == "shared"
    context = context_length(model.config, tokenizer)
    separate = None
    if critic and not shared:  # before an adapter changes and freezes the trunk that is copied
        separate = load_critic(settings, model, tokenizer, reward_model)
        context = min(context, context_length(separate.trunk.config, tokenizer))
    policy = CausalLMPolicy(
        with_adapter(model, lora) if lora.rank > 0 else model,
        _value_head(settings.path, model) if critic and shared else None,
        temperature=temperature,
        eos_token_ids=eos_token_ids,
        pad_token_id=eos_token_ids[0] if pad_token_id is None else pad_token_id,
        context_length=context,
        bf16=computes_in_bf16(settings.precision, model, device),
        critic=separate,
    ).to(device)
    refuse_unknown_head(policy)
    return policy


def load_critic(
    settings: ModelSettings, model: PreTrainedModel, tokenizer, reward_model: str | None
) -> SeparateCritic:
    """A critic with weights of its own: from the reward model, from critic/ in the policy's folder,
    or a copy of the policy's trunk."""
    remote = settings.trust_remote_code
    if settings.critic == "reward_model":
        if reward_model is None:
            raise UserError(
                "model.critic = reward_model, but there are no rewards.models to start from. Set "
                "model.critic to separate, or give --rewards.models PATH"
            )
        _refuse_other_vocabulary(reward_model, tokenizer, remote)
        classifier = load_sequence_classifier(reward_model, trust_remote_code=remote)
        return critic_from_classifier(reward_model, classifier)
    folder = Path(str(settings.path)).expanduser() / FOLDER
    if not (folder / VALUE_HEAD_FILE).is_file():
        return critic_like(model)
    load = transformers.AutoModel.from_pretrained
    options = {"dtype": torch.float32, "trust_remote_code": remote}
    trunk = _loaded("model.path", "critic", load, str(folder), **options)
    return SeparateCritic(trunk, load_value_head(folder))


def load_causal_lm(path: str | None, trust_remote_code: bool = False) -> PreTrainedModel:
    """A transformers causal language model with float32 weights, in eval mode."""
    if path is None:
        raise UserError("model.path is not set, expected a Hub id or the folder of a causal LM")
    folder = Path(path).expanduser()
    if (folder / "adapter_config.json").is_file():
        merged = folder / "merged"
        fix = f"set model.path to {merged}" if merged.is_dir() else "merge it into its model first"
        raise UserError(f"model.path = {path} is a LoRA adapter, expected a whole model; {fix}")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = _loaded(
        "model.path",
        "causal language model",
        load,
        path,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
    )
    return model.eval()


def load_sequence_classifier(
    path: str, *, new_head: bool = False, trust_remote_code: bool = False
) -> nn.Module:
    """A reward model: a sequence classifier with one label, float32, in eval mode.

    With `new_head`, a causal LM that gets a fresh head, drawn from torch's global generator, as
    the start of reward-model training; else a missing head is refused.
    """
    labels = {"num_labels": 1} if new_head else {}
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model, info = _loaded(
        "model.path" if new_head else "rewards.models",
        "sequence classifier",
        load,
        path,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **labels,
    )
    if info["missing_keys"] and not new_head:
        raise UserError(
            f"rewards.models: {path} has no trained {', '.join(sorted(info['missing_keys']))}, "
            "expected a trained sequence classifier; train one with scripts/train_reward_model.py"
        )
    if model.config.num_labels != 1:
        raise UserError(
            f"rewards.models: {path} has {model.config.num_labels} labels, expected a sequence "
            "classifier with one label, whose logit is the score"
        )
    return model.eval()


def all_eos_token_ids(model: PreTrainedModel, tokenizer) -> tuple[int, ...]:
    """Every id that ends a response: the tokenizer's, then those of the generation_config."""
    extra = getattr(model.generation_config, "eos_token_id", None)
    extra = [extra] if isinstance(extra, int) else list(extra or [])
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *extra]))


def context_length(config, tokenizer) -> int:
    """Prompt and response tokens at most that the model can hold."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return min(tokenizer.model_max_length, _UNBOUNDED)


def _value_head(path: str | None, model: PreTrainedModel) -> nn.Linear:
    hidden_size = model.get_output_embeddings().weight.shape[1]
    folder = Path(str(path)).expanduser()
    if not (folder / VALUE_HEAD_FILE).is_file():
        return new_value_head(hidden_size)
    head = load_value_head(folder)
    if head.in_features != hidden_size:
        raise UserError(
            f"{folder / VALUE_HEAD_FILE} reads {head.in_features} features, expected "
            f"{hidden_size}, the model's hidden size; remove the file to start a new value head"
        )
    return head


def _refuse_other_vocabulary(path: str, tokenizer, trust_remote_code: bool) -> None:
    load = transformers.AutoTokenizer.from_pretrained
    other = _loaded("rewards.models", "tokenizer", load, path, trust_remote_code=trust_remote_code)
    mine, its = tokenizer.get_vocab(), other.get_vocab()
    if mine != its:
        apart = sum(mine.get(token) != its.get(token) for token in mine.keys() | its.keys())
        raise UserError(
            f"model.critic = reward_model, but the tokenizer of rewards.models: {path} differs "
            f"from that of model.path in {apart} tokens, expected the same vocabulary, as the "
            "critic reads the policy's token ids. Set model.critic to separate"
        )


def _refuse_smaller_vocabulary(path: str | None, model: PreTrainedModel, tokenizer) -> None:
    embedding: Any = model.get_input_embeddings()
    rows = len(embedding.weight)
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"model.path = {path}: the tokenizer's largest id is {largest}, but the model embeds "
            f"only ids below {rows}, expected a tokenizer and a model that belong together; "
            "save the right tokenizer there, or call model.resize_token_embeddings"
        )


def _loaded(key: str, what: str, load: Callable, path: str, **arguments) -> Any:
    """`load(path)`, where whatever is wrong with the path becomes a UserError naming `key`."""
    folder = Path(path).expanduser()
    refuse_missing_folder(key, path, what)
    try:
        with quiet():
            return load(str(folder) if folder.is_dir() else path, **arguments)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split(os.linesep)[0]
        raise UserError(
            f"{key} = {path}: no {what} could be loaded from there, expected a Hub id that can be "
            f"reached or a folder written by save_pretrained: {reason}"
        ) from error
