"""Settings of the `model` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lmpg.settings.section import Section

ADAPTERS_FASTER = 10
"""How much larger the learning rate of adapters (LoRA) is than that of the whole model."""


class LoraSettings(Section):
    """Low-rank adapters (arXiv 2106.09685) through peft."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0 trains the whole model."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    target_modules: tuple[str, ...] = ()
    """Linear layers that get an adapter: ends of their names, or regular expressions for whole
    names; empty (or all-linear) means all but the head. Each must fit a layer."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the model learn too: all, or those of the layers with an adapter."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained as a whole, as a copy that is saved with the adapter: ends of their
    names, such as lm_head, embed_tokens (tied ones stay tied), norm."""
    use_rslora: bool = False
    """Multiply by alpha / √rank instead (arXiv 2312.03732), so that higher ranks learn as fast."""
    use_dora: bool = False
    """Learn the length of each layer's weight vectors apart from their direction (DoRA, arXiv
    2402.09353); takes more time."""


class LoadingSettings(Section):
    """A causal language model, and how it is loaded to be asked."""

    path: str | None = None
    """Folder of a run of lmpg, whose trained model is meant; or Hub id or folder of a causal LM or
    of a LoRA adapter."""
    revision: str | None = None
    """Branch, tag or commit of `path` on the Hub; none is its main branch."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer and its chat template; none takes those of `path`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes in autocast over fp32 weights. auto does so on a GPU, and on a CPU that is made
    for it where the model has a million parameters; else it is fp32. A run keeps its choice."""
    tf32: bool = True
    """Let a GPU round the factors of fp32 products to TF32 (10 bits of mantissa), for several times
    the speed. False forbids it. There is no TF32 on a CPU."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""


class ModelSettings(LoadingSettings):
    """The causal language model that is the policy."""

    path: str | None = None
    """Hub id or folder of a causal LM, or of a LoRA adapter, which goes on learning over its base
    model; none takes that of the built-in world `data.world`."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """What weights that do not learn are kept in: the model under an adapter, the reference, the
    teacher, reward models. auto: as in their checkpoint; bf16 rounds others. Whatever learns is
    kept in fp32; with bf16 a policy that learns as a whole starts from rounded weights, too, as its
    reference does."""
    quantisation: Literal["none", "nf4"] = "none"
    """nf4 keeps the linear layers under an adapter, but for the head, in 4 bits (QLoRA, arXiv
    2305.14314) by bitsandbytes: about a quarter of bf16's memory, for a model that is not quite the
    same. Needs an adapter."""
    final_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """What `final/` and `best/` hold weights in; auto: what the checkpoint at the start does. bf16
    rounds what was learned, and may lose steps of a small learning rate."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping what it computed: about a
    third more time for a fraction of the activations' memory."""
    critic: Literal["shared", "separate", "reward_model"] = "shared"
    """shared: a value head on the policy's trunk; separate: a second trunk with a value head,
    trained as a whole; reward_model: the same, starting as the first of rewards.models."""
    reference: str | None = None
    """Hub id or folder of the frozen model that a KL is measured to, with the policy's vocabulary;
    none is the model that training starts from."""
    reference_refresh: int = Field(0, ge=0)
    """Iterations after which the reference becomes the policy as it is by then, again and again;
    0 keeps it."""
    teacher: str | None = None
    """Hub id or folder of the model that `distillation` learns from, with the policy's vocabulary;
    it stands in the reference's place."""
    lora: LoraSettings = LoraSettings()

    @model_validator(mode="after")
    def _require_a_model_for_what_belongs_to_it(self) -> ModelSettings:
        for key in ("revision", "tokenizer"):
            if (value := getattr(self, key)) is not None and self.path is None:
                raise ValueError(
                    f"model.{key} = {value}, but there is no model.path that it could belong to. "
                    f"Give --model.path, or leave model.{key} out"
                )
        return self
