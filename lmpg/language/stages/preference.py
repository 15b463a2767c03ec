"""DPO and KTO: a causal language model learns from answers that were judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmpg.language.data.policy_pairs import (
    JudgedSet,
    answers_from_rows,
    comparisons_from_rows,
    load_answers,
    load_comparisons,
)
from lmpg.language.data.row_filter import Sieve
from lmpg.language.data.tokenizing import start_ids
from lmpg.language.objectives.dpo_objective import Comparing
from lmpg.language.objectives.kto_objective import Judging
from lmpg.language.objectives.preference_objective import JudgedObjective
from lmpg.language.stages.prepared import Prepared, loaded_policy, sampled
from lmpg.language.stages.settings import DpoSettings, KtoSettings
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runtime.processes import Processes


def dpo(settings: DpoSettings, world: OfflineWorld | None, processes: Processes) -> Prepared:
    """Chosen answers are to gain more on the reference than rejected ones."""
    return _prepared(settings, world, processes, load_comparisons, comparisons_from_rows, Comparing)


def kto(settings: KtoSettings, world: OfflineWorld | None, processes: Processes) -> Prepared:
    """Desirable answers are to gain on the reference, undesirable ones to lose."""
    return _prepared(settings, world, processes, load_answers, answers_from_rows, Judging)


def _prepared(
    settings: DpoSettings | KtoSettings,
    world: OfflineWorld | None,
    processes: Processes,
    load: Callable[..., JudgedSet],
    from_rows: Callable[..., list[Any]],
    objective: type[JudgedObjective],
) -> Prepared:
    policy, tokenizer = loaded_policy(settings, world, processes)
    if world is None:
        data = load(settings.data, tokenizer, policy.context_length)
    else:
        sieve = Sieve(policy.context_length, "error", start_ids(tokenizer), "text")
        data = JudgedSet(
            from_rows(world.train_rows, tokenizer, sieve),
            from_rows(world.held_out_rows, tokenizer, sieve),
        )
    first = [getattr(x, "chosen", None) or x.text for x in data.held_out]
    samples = sampled(settings, world, policy, tokenizer, first, processes)
    made = objective(
        policy,
        settings.algorithm,
        (data.train, data.held_out),
        settings.run.seed,
        processes,
        settings.update.microbatch_size,
        samples,
    )
    return Prepared(made, lambda path: policy.save_pretrained(path, tokenizer), data.line())
