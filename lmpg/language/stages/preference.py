"""DPO and KTO: a causal language model learns from answers that are preferred or labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmpg.language.data.examples import RowFilter, Split, data_rows
from lmpg.language.data.policy_pairs import (
    labelled_completions_from_rows,
    load_labelled_completions,
    load_preference_pairs,
    preference_pairs_from_rows,
)
from lmpg.language.data.tokenizing import bos_ids
from lmpg.language.models.loading import load_reference
from lmpg.language.objectives.dpo_objective import DPOObjective
from lmpg.language.objectives.kto_objective import KTOObjective
from lmpg.language.objectives.preference_objective import PreferenceObjective, with_reference
from lmpg.language.stages.prepared import Prepared, loaded_policy, sample_metrics
from lmpg.language.stages.settings import DpoSettings, KtoSettings
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runtime.processes import Processes


def dpo(settings: DpoSettings, world: OfflineWorld | None, processes: Processes) -> Prepared:
    """Chosen answers are to gain more on the reference than rejected ones."""
    parts = (load_preference_pairs, preference_pairs_from_rows, DPOObjective)
    return _prepared(settings, world, processes, *parts)


def kto(settings: KtoSettings, world: OfflineWorld | None, processes: Processes) -> Prepared:
    """Desirable answers are to gain on the reference, undesirable ones to lose."""
    parts = (load_labelled_completions, labelled_completions_from_rows, KTOObjective)
    return _prepared(settings, world, processes, *parts)


def _prepared(
    settings: DpoSettings | KtoSettings,
    world: OfflineWorld | None,
    processes: Processes,
    load: Callable[..., Split],
    from_rows: Callable[..., Sequence[Any]],
    objective: type[PreferenceObjective],
) -> Prepared:
    read = () if world else data_rows(settings.data)
    policy, tokenizer = loaded_policy(settings, world, processes)
    with processes.in_turn():
        reference = load_reference(settings.model, tokenizer, policy)
    if world is None:
        data = load(settings.data, tokenizer, policy.context_length, read)
    else:
        row_filter = RowFilter(policy.context_length, "error", bos_ids(tokenizer))
        train, held_out = (
            from_rows(part, tokenizer, row_filter)
            for part in (world.train_rows, world.held_out_rows)
        )
        data = Split(train, held_out)
    texts = [example.texts[0] for example in data.held_out]
    metrics = sample_metrics(settings, world, policy, tokenizer, texts, processes)
    parts, rows = (data.train, data.held_out), settings.update.microbatch_size
    judge = policy if reference is None else reference.policy
    if settings.needs_reference:
        train, held_out = (with_reference(x, judge, rows, processes) for x in parts)
        parts = train, held_out
    seed, algorithm = settings.run.seed, settings.algorithm
    known = judge if settings.run.token_view else None
    made = objective(policy, algorithm, parts, seed, processes, rows, metrics, tokenizer, known)
    return Prepared(made, lambda path: policy.save_pretrained(path, tokenizer), data.line())
