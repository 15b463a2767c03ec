"""What a stage will need of the memory, out of its settings and its parts."""

from __future__ import annotations

from typing import Any

import torch

from lmpg.language.models.footprint.needs import Work
from lmpg.language.models.footprint.shape import shape_of
from lmpg.language.models.forward.kept_weights import is_packed
from lmpg.language.models.lora import learning_beside, rank_of
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.stages.prepared import SAMPLED_TOGETHER, Prepared
from lmpg.language.stages.settings import OfflineLearningSettings, SftSettings
from lmpg.runtime.processes import Processes


def work_of(settings: OfflineLearningSettings, prepared: Prepared, processes: Processes) -> Work:
    """The sizes of a stage."""
    count = processes.count
    objective, update = prepared.objective, settings.update
    module: Any = objective.module
    policy = module if isinstance(module, CausalLMPolicy) else None
    of_minibatch = -(-update.minibatch_size // count)
    rows = min(update.microbatch_size, of_minibatch)
    texts = 1 if isinstance(settings, SftSettings) else 2
    longest = max(map(objective.num_tokens, objective.epoch(0))) // texts
    sampled = getattr(settings.evaluation, "size", 0)
    shape = shape_of(module if policy is None else policy.causal_lm)
    rank = 0 if policy is None else rank_of(policy.model)
    copied = sampled and not rank  # what sampled responses are compared with
    kept = torch.float32 if policy is None else policy.frozen_dtype
    return Work(
        model=shape,
        rows=texts * rows,
        prompt=0 if policy else longest,  # a reward model has no logits
        response=longest if policy else 0,
        sampled=min(sampled, max(update.microbatch_size, SAMPLED_TOGETHER)),
        rank=rank,
        besides=0 if policy is None else learning_beside(policy.model),
        packed=is_packed(module),
        kept=kept.itemsize,
        product=2 if prepared.bf16 else 4,
        optimizer=update.optimizer,
        saved=4 if policy is None else policy.saved_dtype.itemsize,
        frozen={"reference": float(kept.itemsize * shape.weights)} if copied else {},
        recompute=settings.model.gradient_checkpointing,
        several=of_minibatch > rows,
        count=count,
        shards=processes.shards,
        device=module.device.type if policy else next(module.parameters()).device.type,
    )
