"""Supervised fine-tuning: a causal language model learns texts."""

from __future__ import annotations

from lmpg.language.data.examples import Split, data_rows
from lmpg.language.data.texts import load_texts, texts_from_rows
from lmpg.language.models.packing_check import refuse_unpackable
from lmpg.language.objectives.sft_objective import SFTObjective
from lmpg.language.stages.prepared import Prepared, loaded_policy, sample_metrics
from lmpg.language.stages.settings import SftSettings
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runtime.processes import Processes


def sft(settings: SftSettings, world: OfflineWorld | None, processes: Processes) -> Prepared:
    """The mean log-prob of the tokens in the loss masks is to rise."""
    data = () if world else data_rows(settings.data)
    policy, tokenizer = loaded_policy(settings, world, processes)
    context = policy.context_length
    if world is None:
        texts = load_texts(settings.data, tokenizer, context, data)
    else:
        rows = (world.train_rows, world.held_out_rows)
        train, held_out = (texts_from_rows(part, tokenizer, context) for part in rows)
        texts = Split(train, held_out)
    metrics = sample_metrics(settings, world, policy, tokenizer, texts.held_out, processes)
    seed, packing = settings.run.seed, settings.data.packing
    if packing:
        refuse_unpackable(policy)
    parts = (texts.train, texts.held_out)
    objective = SFTObjective(policy, settings.algorithm, parts, seed, processes, metrics, packing)
    packed = f"; packed into {len(objective.train)} rows" if packing else ""
    return Prepared(
        objective, lambda path: policy.save_pretrained(path, tokenizer), texts.line() + packed
    )
