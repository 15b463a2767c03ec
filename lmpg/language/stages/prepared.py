"""What the stages share: the model that they start from, and metrics of sampled responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmpg.language.data.prompts import Prompt, prompts_from_rows
from lmpg.language.data.texts import Text
from lmpg.language.data.tokenizing import reading_tokenizer
from lmpg.language.models.loading import load_policy, tokenizer_of
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import num_weights
from lmpg.language.models.settings import ModelSettings
from lmpg.language.models.start.shared_out import loaded
from lmpg.language.rollouts.evaluation import Evaluator
from lmpg.language.rollouts.generation import Generator
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.stages.settings import SampledStageSettings
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runtime.machine import give_back_freed_memory
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from lmpg.training.offline import Objective

SAMPLED_TOGETHER = 256


@dataclass(frozen=True)
class Prepared:
    """An objective, a function that saves what it trains, and a line about the data for the log."""

    objective: Objective
    save: Callable[[Path], None]
    line: str

    @property
    def bf16(self) -> bool:
        """Whether what is trained computes in bfloat16."""
        objective: Any = self.objective
        return bool(getattr(objective, "bf16", False) or getattr(objective.module, "bf16", False))


def starting_model(model: ModelSettings, world: OfflineWorld | None) -> ModelSettings:
    """The model that a stage starts from: the user's, else the world's."""
    if model.path is not None or world is None:
        return model
    return model.model_copy(update={"path": str(world.model_path)})


def loaded_policy(
    settings: SampledStageSettings, world: OfflineWorld | None, processes: Processes
) -> tuple[CausalLMPolicy, Any]:
    """The policy that a stage starts from, the user's or the world's, and its tokenizer."""
    model = starting_model(settings.model, world)
    tokenizer = reading_tokenizer(tokenizer_of(model), settings.data)
    torch.manual_seed(settings.run.seed)  # LoRA's factors are drawn from the global generator
    start = {"critic": False, "temperature": 1.0, "device": processes.device}
    policy = loaded(partial(load_policy, model, tokenizer, **start), processes)
    processes.suit_threads(num_weights(policy))
    give_back_freed_memory()
    return policy, tokenizer


def sample_metrics(
    settings: SampledStageSettings,
    world: OfflineWorld | None,
    policy: CausalLMPolicy,
    tokenizer: Any,
    texts: Sequence[Text],
    processes: Processes,
) -> Callable[[], dict[str, float]] | None:
    """A function that samples responses to the world's held-out prompts, or to those of held-out
    `texts`, and returns their metrics; None where no samples are asked for."""
    size, length = settings.evaluation.size, settings.evaluation.max_new_tokens
    if not size:
        return None
    room = policy.context_length - length
    prompts: Sequence[Prompt]
    if world is None:
        prompts = _prompts(texts, tokenizer, room)
    else:
        prompts = prompts_from_rows(world.prompt_rows, tokenizer, room)
    rows = settings.update.microbatch_size
    sampler = Sampler(policy, length)
    generator = Generator(policy, sampler, tokenizer, settings.run.seed, processes, rows)
    metric = world.eval_metric if world else None
    together = max(rows, SAMPLED_TOGETHER)
    reference = policy.reference()
    return Evaluator(
        generator, prompts, size, together, reference=reference, eval_metric=metric
    ).evaluate


def _prompts(texts: Sequence[Text], tokenizer: Any, room: int) -> list[Prompt]:
    """The different prompts of texts, where they leave room for a response."""
    found = dict.fromkeys(tuple(text.ids[: text.prompt_length]) for text in texts)
    usable = [list(ids) for ids in found if 0 < len(ids) <= room]
    if not usable:
        raise UserError(
            "evaluation.size asks for sampled responses, but no held-out row has a prompt that "
            "leaves room for evaluation.max_new_tokens. Set evaluation.size to 0, or lower "
            "evaluation.max_new_tokens"
        )
    return [Prompt(tokenizer.decode(ids, skip_special_tokens=True), ids) for ids in usable]
