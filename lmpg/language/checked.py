"""`lmpg check`: all parts of a run are made and tried, and what would go wrong is told. Nothing of
it stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from lmpg.language.data.prompts import lengths_of
from lmpg.language.models.precision import num_weights
from lmpg.language.models.settings import ADAPTERS_FASTER
from lmpg.language.program import prepare
from lmpg.language.rollouts import traps
from lmpg.language.rollouts.scoring import GroupSampler, Sampled
from lmpg.language.rollouts.trial import passing_run, step_line
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.registry import world_asked_for
from lmpg.runtime.machine import Stopwatch
from lmpg.runtime.processes import Processes
from lmpg.training.settings import UpdateSettings

RESPONSES, PROMPTS = 8, 2
"""How many are shown."""


def check_language(settings: LanguageSettings, name: str) -> list[str]:
    """Makes all parts, samples and scores some responses, and takes one whole step; says what it
    finds and returns the traps, on every rank those that the main process found."""
    processes = Processes()
    processes.announce()
    settings = processes.launch.obeyed_by(settings)
    with passing_run(settings, name, processes) as folder, ExitStack() as opened:
        prepared = prepare(settings, folder, processes, opened)
        opened.callback(prepared.online.tracker.close)
        source: Any = prepared.online.source
        group_sampler = getattr(source.sampler, "sampler", source.sampler)
        sampled = _some(group_sampler, source.processing)
        found = [*_before(settings, source, group_sampler)]
        found += traps.of_responses(
            sampled.groups[0].completions,
            sampled.groups[0].scores,
            group_sampler.algorithm.group_size,
        )
        if processes.is_main:
            print("\n".join(shown(sampled, source.generator.tokenizer)), flush=True)
        of_all = sampled.scores  # every rank's, as all take the step or none does
        allowed = settings.rewards.max_error_share * len(of_all.totals)
        if of_all.errors <= allowed:  # else it could take no step
            metrics = prepared.online.iterate(1)
            found += traps.of_time(metrics)
            if processes.is_main:
                print(step_line(metrics, settings.run.total_steps, processes), flush=True)
    return processes.on_main(lambda: found)


def _some(sampler: GroupSampler, processing: Any) -> Sampled:
    """Groups of at least `RESPONSES` responses on each rank, as the run would sample them."""
    size, count = sampler.algorithm.group_size, sampler.generator.processes.count
    prompts = list(range(min(len(sampler.prompts), count * -(-RESPONSES // size))))
    prompts *= -(-count // len(prompts))
    return sampler.sample_round(("check",), prompts, processing, Stopwatch())


def _before(settings: LanguageSettings, source: Any, sampler: GroupSampler) -> Iterator[str]:
    """Traps of the data and the settings."""
    policy, tokenizer = source.generator.policy, source.generator.tokenizer
    update, parts = settings.update, (sampler.prompts, source.evaluator.prompts)
    ends = policy.eos_token_ids
    in_world = world_asked_for(settings.model_dump()) is not None
    seeded = settings.environment.wanted and settings.data.path is None and not in_world
    if not in_world:  # a world has been tried
        if not seeded and sampler.prompts[0].ids:  # else their environments begin them
            yield from traps.of_data(parts, tokenizer, settings.data, ends)
        adapters = policy.model is not policy.causal_lm
        suiting = UpdateSettings.model_fields["learning_rate"].default
        suiting *= ADAPTERS_FASTER if adapters else 1
        yield from traps.of_rate(update.learning_rate, suiting, num_weights(policy), adapters)
    yield from traps.of_warmup(update.warmup_steps, settings.run.total_steps)
    if seeded:  # every episode begins from a seed of its own
        return
    room = policy.context_length - settings.sampling.max_new_tokens
    cut = settings.data.overlong == "truncate-left"
    lengths = lengths_of(sampler.prompts).tolist()
    yield from traps.of_prompts(lengths, room, sampler.num_groups, cut)


def shown(sampled: Sampled, tokenizer: Any) -> list[str]:
    """Prompts and responses with their special tokens, and scores."""
    completions, scores = sampled.groups[0].completions, sampled.groups[0].scores
    prompts = dict.fromkeys(tuple(x.ids) for x in completions.prompts)
    lines = [f"prompt    {traps.in_a_line(tokenizer, x)}" for x in list(prompts)[:PROMPTS]]
    for ids, score in list(zip(completions.ids, scores.totals))[:RESPONSES]:
        told = "no score" if score is None else f"{score:8.3f}"
        lines.append(f"{told}  {traps.in_a_line(tokenizer, ids)}")
    return lines
