"""From a Hub id or a folder to tokenizer, policy and reward model, in float32."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from lmpg.language.models.critic import (
    FOLDER,
    SeparateCritic,
    critic_from_classifier,
    critic_like,
    load_value_head,
    value_head_of,
)
from lmpg.language.models.forward.kept_weights import (
    chosen_dtype,
    exact_dtype,
    keep_frozen,
    rounded_to_bf16,
    saved_dtype,
)
from lmpg.language.models.lora import refuse_options_without_rank, with_adapter
from lmpg.language.models.model_files import is_saved_in_bf16
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import allow_tf32, computes_in_bf16, has_tf32
from lmpg.language.models.pretrained import pretrained_model, pretrained_tokenizer
from lmpg.language.models.reference import Reference
from lmpg.language.models.settings import ModelSettings
from lmpg.language.models.start.first_look import refuse_unsound
from lmpg.language.models.start.four_bits import refuse_packed
from lmpg.language.models.start.read_low import read_low, stays_low
from lmpg.language.models.start.shared_out import shared_out_like
from lmpg.language.models.start.trained_adapter import (
    Place,
    base_key,
    base_of,
    tokenizer_place,
    with_trained_adapter,
)
from lmpg.language.models.start.vocabulary import (
    absent_ids,
    all_eos_token_ids,
    refuse_other_vocabulary,
    refuse_smaller_vocabulary,
)
from lmpg.runtime.sharding import is_spread
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)
_UNBOUNDED = 2**30
_CONTEXTS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "context_length",
    "max_target_positions",
)


def tokenizer_of(settings: ModelSettings):
    """The tokenizer that goes with the model of `settings`: its own, or the one that they name."""
    if settings.tokenizer is None:
        place = tokenizer_place("model.path", str(settings.path), settings.revision)
        return load_tokenizer(place[0], settings.trust_remote_code, place[1])
    return load_tokenizer(settings.tokenizer, settings.trust_remote_code, key="model.tokenizer")


def load_tokenizer(
    path: str,
    trust_remote_code: bool = False,
    revision: str | None = None,
    key: str = "model.path",
):
    """The tokenizer of a model; one without an EOS token is refused."""
    tokenizer = pretrained_tokenizer(key, path, trust_remote_code, revision)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{key} = {path}: its tokenizer has no EOS token, expected one, because every "
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
    key: str = "model.path",
    moved: bool = True,
    learns: bool = True,
) -> CausalLMPolicy:
    """The model of `settings.path` as a policy; with `critic`, the one that the settings ask for:
    its saved one, one like `reward_model`, or a new one.

    LoRA factors are drawn from torch's global generator, nothing else is random. key: the setting
    that the path comes from. device: where it is to compute; it is there, unless not `moved`. One
    that does not learn is frozen, and takes no more room before that.
    """
    copied = critic and settings.critic != "shared"  # before an adapter changes and freezes it
    model, base = _whole_model(settings, key, learns, copied)
    refuse_smaller_vocabulary(key, settings.path, model, tokenizer)
    eos_token_ids, pad_token_id = all_eos_token_ids(model, tokenizer), tokenizer.pad_token_id
    separate = load_critic(settings, model, tokenizer, reward_model) if copied else None
    read = [model] if separate is None else [model, separate.trunk]
    dtypes = _dtypes(settings, model)
    policy = CausalLMPolicy(
        _learning(settings, model, key, base, dtypes["frozen_dtype"], learns),
        value_head_of(settings.path, model) if critic and not copied else None,
        temperature=temperature,
        eos_token_ids=eos_token_ids,
        pad_token_id=eos_token_ids[0] if pad_token_id is None else pad_token_id,
        context_length=min(context_length(x.config, tokenizer) for x in read),
        bf16=computes_in_bf16(settings.precision, model, device),
        tf32=settings.tf32 and has_tf32(torch.device(device)),
        **dtypes,
        critic=separate,
        absent_ids=absent_ids(key, settings.path, model, tokenizer, eos_token_ids),
    )
    return _ready(policy if learns else policy.frozen(), settings, device if moved else None)


def _ready(
    policy: CausalLMPolicy, settings: ModelSettings, device: torch.device | str | None
) -> CausalLMPolicy:
    """The policy where it is to compute, set up to do so and known to be sound."""
    policy = policy if device is None else policy.to(device)
    allow_tf32(policy, settings.tf32)
    policy.recompute_layers(settings.gradient_checkpointing)
    refuse_unsound(policy, settings.precision)
    return policy


def _dtypes(settings: ModelSettings, model: PreTrainedModel) -> dict[str, torch.dtype]:
    """What a policy's frozen weights are kept in, and what it is saved in."""
    own = exact_dtype(model)
    kept, saved = chosen_dtype(settings.dtype, own), saved_dtype(settings.final_dtype, own, model)
    return {"frozen_dtype": kept, "saved_dtype": saved}


def _whole_model(
    settings: ModelSettings, key: str, learns: bool, copied: bool
) -> tuple[PreTrainedModel, Place | None]:
    """The whole model at `settings.path`; where an adapter lies there, the one under it, and where
    that one lies. learns: whether anything does. copied: whether a critic is made of it."""
    remote, quantised = settings.trust_remote_code, settings.quantisation
    base = base_of(key, settings.path, settings.revision)
    low = not copied and stays_low(settings, base is not None, learns)
    if base is not None:
        at = base_key(key, settings.path)
        return load_causal_lm(base[0], remote, at, base[1], quantised, low), base
    if quantised != "none" and settings.lora.rank == 0:
        raise UserError(
            f"model.quantisation = {quantised}, but model.lora.rank is 0, which trains "
            "the whole model, and weights in 4 bits cannot learn. Set model.lora.rank, or leave "
            "model.quantisation out"
        )
    return load_causal_lm(settings.path, remote, key, settings.revision, quantised, low), None


def _learning(
    settings: ModelSettings,
    model: PreTrainedModel,
    key: str,
    base: Place | None,
    frozen_in: torch.dtype,
    learns: bool,
) -> nn.Module:
    """What learns: the model, or adapters over it, whose frozen weights are kept in `frozen_in`."""
    if base is not None:
        return keep_frozen(with_trained_adapter(model, key, settings, base), frozen_in)
    if settings.lora.rank == 0:
        refuse_options_without_rank(settings.lora)
        if learns:
            refuse_packed(model, f"{key} = {settings.path}", "set model.lora.rank")
        return rounded_to_bf16(model) if settings.dtype == "bf16" else model
    return keep_frozen(with_adapter(model, settings.lora, settings.revision), frozen_in)


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
        fix = "Set model.critic to separate"
        refuse_other_vocabulary("rewards.models", reward_model, tokenizer, remote, fix)
        classifier = load_sequence_classifier(reward_model, trust_remote_code=remote)
        return critic_from_classifier(reward_model, classifier)
    folder = Path(str(settings.path)).expanduser() / FOLDER
    if not folder.is_dir():
        return critic_like(model)
    trunk = pretrained_model("model.path", AutoModel, str(folder), remote)
    hidden_size = trunk.config.get_text_config().hidden_size
    return SeparateCritic(trunk, load_value_head(folder, hidden_size))


def load_reference(settings: ModelSettings, tokenizer, policy: CausalLMPolicy) -> Reference | None:
    """The teacher, or the user's own reference, frozen; None where the first policy is the one.

    Its tokenizer must have the same vocabulary, as it reads the policy's token ids.
    """
    key = "model.teacher" if settings.teacher else "model.reference"
    path = settings.teacher or settings.reference
    if path is None:
        return None
    refuse_other_vocabulary(key, path, tokenizer, settings.trust_remote_code)
    names = ("dtype", "tf32", "trust_remote_code")
    same = {name: getattr(settings, name) for name in names}
    same["precision"] = "bf16" if policy.bf16 else "fp32"
    own = load_policy(
        ModelSettings(path=path, **same),  # type: ignore[arg-type]
        tokenizer,
        critic=False,
        temperature=policy.temperature,
        device=policy.device,
        key=key,
        moved=not is_spread(policy),
        learns=False,
    )
    if own.context_length < policy.context_length:
        policy.context_length = own.context_length  # what it cannot read it cannot judge
    return Reference(policy, shared_out_like(own, policy))


def load_causal_lm(
    path: str | None,
    trust_remote_code: bool = False,
    key: str = "model.path",
    revision: str | None = None,
    quantisation: str = "none",
    low: bool = False,
) -> PreTrainedModel:
    """A transformers causal language model in eval mode; weights are float32, or in 4 bits, or with
    `low` in bfloat16, if their file is."""
    if path is None:
        raise UserError("model.path is not set, expected a Hub id or the folder of a causal LM")
    kind, rest = AutoModelForCausalLM, (trust_remote_code, False, revision, quantisation)
    load = partial(pretrained_model, key, kind, path, *rest)
    return read_low(load) if low and is_saved_in_bf16(path, revision) else load()


def load_sequence_classifier(
    path: str,
    *,
    new_head: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> nn.Module:
    """A reward model: a sequence classifier with one label, float32, in eval mode.

    With `new_head`, a causal LM that gets a fresh head, drawn from torch's global generator, as
    the start of reward-model training; else a missing head is refused.
    """
    key, kind = "model.path" if new_head else "rewards.models", AutoModelForSequenceClassification
    model = pretrained_model(key, kind, path, trust_remote_code, new_head, revision)
    if new_head:
        refuse_packed(model, f"{key} = {path}", "save it unquantised")
    if model.config.num_labels != 1:
        raise UserError(
            f"rewards.models: {path} has {model.config.num_labels} labels, expected a sequence "
            "classifier with one label, whose logit is the score"
        )
    return model


def context_length(config, tokenizer) -> int:
    """Prompt and response tokens at most that the model can hold."""
    config = config.get_text_config()
    for name in _CONTEXTS:
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return min(tokenizer.model_max_length, _UNBOUNDED)
