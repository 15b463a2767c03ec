"""Supervised fine-tuning: a causal language model learns texts."""

from __future__ import annotations

from lmpg.language.data.texts import TextSet, load_texts, texts_from_rows
from lmpg.language.objectives.sft_objective import NextToken, PackedNextToken
from lmpg.language.stages.prepared import Prepared, loaded_policy, sampled
from lmpg.language.stages.settings import SftSettings
from lmpg.language.worlds.world import OfflineWorld
from lmpg.runtime.processes import Processes


def sft(settings: SftSettings, world: OfflineWorld | None, processes: Processes) -> Prepared:
    """The mean log-prob of every learned token, to be raised."""
    policy, tokenizer = loaded_policy(settings, world, processes)
    context = policy.context_length
    if world is None:
        texts = load_texts(settings.data, tokenizer, context)
    else:
        texts = TextSet(
            texts_from_rows(world.train_rows, tokenizer, context),
            texts_from_rows(world.held_out_rows, tokenizer, context),
        )
    samples = sampled(settings, world, policy, tokenizer, texts.held_out, processes)
    seed = settings.run.seed
    plain = NextToken(policy, texts.train, texts.held_out, seed, processes, samples)
    objective = PackedNextToken(plain) if settings.data.packing else plain
    rows = f"; packed into {len(objective.epoch(0))} rows" if settings.data.packing else ""
    return Prepared(
        objective, lambda path: policy.save_pretrained(path, tokenizer), texts.line() + rows
    )
