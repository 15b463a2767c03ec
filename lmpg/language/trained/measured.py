"""Measures a model, or two on the same prompts: scores, pass@k, greedy decoding, lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lmpg.functional.sampled_estimates import bootstrap_interval
from lmpg.language.data.examples import Split
from lmpg.language.data.order import subset
from lmpg.language.data.prompts import (
    Prompt,
    common_columns,
    load_all_prompts,
    load_prompts,
    prompts_from_rows,
)
from lmpg.language.data.storage.examples_store import taken
from lmpg.language.data.tokenizing import completion_text
from lmpg.language.rewards.results.scores import listed
from lmpg.language.rewards.scorer import Functions as ScoringFunctions
from lmpg.language.rewards.scorer import Scorer, started
from lmpg.language.rewards.settings import ScoringSettings
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.score_processing import score_statistics
from lmpg.language.rollouts.scored_completions import (
    ScoredCompletions,
    powers_up_to,
    scored_completions,
)
from lmpg.language.run_environments import environments_for, pool_for
from lmpg.language.trained.command_settings import EvaluateSettings, MeasuringSettings
from lmpg.language.trained.loaded import began, loaded
from lmpg.language.trained.of_run import START, model_folder, start_of
from lmpg.language.worlds.registry import PREFIX, WORLDS, world_asked_for
from lmpg.language.worlds.world import World
from lmpg.runtime.processes import Processes
from lmpg.runtime.progress import teller
from lmpg.settings.section import UserError

Interval = tuple[float, float]
Functions = Mapping[str, Callable]
EPISODES = 64
"""Of an environment whose episodes begin from seeds, where no size is given."""
NO_FUNCTIONS: Functions = MappingProxyType({})


@dataclass(frozen=True)
class Measured:
    """What the responses of the model called `model` were found to be.

    per_prompt: figures of each prompt, [P], NaN where there is none. whole: figures of all
    responses together. sampled, greedy: the responses.
    """

    model: str
    per_prompt: dict[str, Tensor]
    whole: dict[str, float]
    sampled: ScoredCompletions
    greedy: ScoredCompletions | None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Means over the prompts, and what is known of all responses together."""
        return {name: float(x.nanmean()) for name, x in self.per_prompt.items()} | self.whole

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of the means over prompts, by the bootstrap."""
        shown = shown_figures(self.sampled.samples, list(self.per_prompt))
        return {name: bootstrap_interval(self.per_prompt[name]) for name in shown}


@dataclass(frozen=True)
class Evaluated:
    """A model's figures, and where it was compared another one's, with the mean of each paired
    difference and its 95 % interval (mean, low, high)."""

    settings: EvaluateSettings
    first: Measured
    other: Measured | None = None
    differences: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The model's figures; names as in a run's evaluations."""
        return self.first.metrics


def evaluate(settings: EvaluateSettings, functions: Functions = NO_FUNCTIONS) -> Evaluated:
    """Load, sample and score what the settings say; the same on every rank.

    functions: rewards that cannot be imported, by their names in the settings.
    """
    path, other = settings.compare, None
    if path is not None:
        other = start_of(settings.model.path) if path == START else {}
        other = other or {"path": model_folder(path, "compare")}
    processes, world = began(settings), world_of(settings)
    first = _measured(settings, processes, world, functions)
    if other is None:
        return Evaluated(settings, first)
    second = _measured(settings, processes, world, functions, other)
    if [x.prompt for x in first.sampled.prompts] != [x.prompt for x in second.sampled.prompts]:
        raise UserError(
            f"compare = {path} reads other prompts than {first.model} (data.overlong = "
            f"{settings.data.overlong} leaves out others), expected the same for both: use "
            "a smaller --sampling.max-new-tokens"
        )
    return Evaluated(settings, first, second, differences(first, second))


def differences(first: Measured, other: Measured) -> dict[str, tuple[float, float, float]]:
    """(mean, low, high) of each figure of the first less that of the other, prompt by prompt."""
    found = {}
    for name in first.intervals:
        apart_P = first.per_prompt[name] - other.per_prompt[name]
        found[name] = (float(apart_P.nanmean()), *bootstrap_interval(apart_P))
    return found


def shown_figures(samples: int, names: list[str]) -> list[str]:
    """The names without those pass@k whose k is between powers of two."""
    hidden = {f"pass_at_{k}" for k in range(1, samples + 1)}
    hidden -= {f"pass_at_{k}" for k in powers_up_to(samples)}
    return [name for name in names if name not in hidden]


def world_of(settings: MeasuringSettings) -> World | None:
    """The built-in world whose data are asked for."""
    if not str(settings.data.path).startswith(PREFIX):
        return None
    name = world_asked_for(settings.model_dump())
    own = bool(settings.rewards.functions or settings.rewards.models)
    return WORLDS[str(name)].build(None, not own)


def _measured(
    settings: EvaluateSettings,
    processes: Processes,
    world: World | None,
    functions: Functions,
    other: dict[str, Any] | None = None,
) -> Measured:
    """The model of the settings, or the `other` one: loaded, asked and let go."""
    with ExitStack() as opened:
        rewards = rewards_of(settings, world)
        imported = started(rewards, functions, opened)
        generator = loaded(settings, settings.data, processes, other)
        parts = settings.environment, settings.data, generator.tokenizer
        pool = pool_for(opened, *parts, functions)
        environments = environments_for(pool, *parts, generator.policy.eos_token_ids)
        generator = replace(generator, environments=environments)
        prompts = prompts_of(settings, generator, world)
        scorer = scorer_of(settings, generator, prompts, rewards, imported)
        ask = partial(
            scored_completions, generator, prompts, rows=settings.batch_size, scorer=scorer
        )
        name = str(settings.compare if other else settings.model.path)
        tell = teller(f"prompts answered by {name}", len(processes.share_of(len(prompts))))
        sampled = ask(settings.samples, progress=tell)
        greedy = ask(1, greedy=True) if settings.greedy else None
    _refuse_nothing_measured(name, sampled)
    whole = {**score_statistics(sampled.scores), "distinct": sampled.distinct}
    if errors := sampled.scores.count(None):
        whole["reward_errors"] = float(errors)
    whole |= sampled.logged_means
    if world is not None:
        whole |= world.eval_metric(sampled.prompts, sampled.texts)
    return Measured(name, figures(sampled, greedy, settings.pass_score), whole, sampled, greedy)


def _refuse_nothing_measured(name: str, sampled: ScoredCompletions) -> None:
    """UserError where there is no figure to report."""
    if sampled.ruined:
        raise UserError(
            f"{name} gives NaN for the next token, expected probabilities: its weights are ruined; "
            "name another model"
        )
    if set(sampled.scores) == {None}:
        raise UserError(
            f"no response of {name} could be scored, expected scores. Mend the reward, which said:"
            f"{listed(sampled.messages)}"
        )


def figures(
    sampled: ScoredCompletions, greedy: ScoredCompletions | None, pass_score: float
) -> dict[str, Tensor]:
    """Each figure by prompt, [P]: means over the prompt's responses."""
    found = {"reward": sampled.per_prompt(sampled.scores).nanmean(1)}
    for k in range(1, sampled.samples + 1):
        found[f"pass_at_{k}"] = sampled.pass_at(k, pass_score)
    if greedy is not None:
        found["greedy_reward"] = greedy.per_prompt(greedy.scores)[:, 0]
        found["greedy_pass"] = greedy.pass_at(1, pass_score)
    if len(sampled.by_reward) > 1:
        for name, scores in sampled.by_reward.items():
            found[f"rewards/{name}/mean"] = sampled.per_prompt(scores).nanmean(1)
    found["length"] = sampled.per_prompt(sampled.lengths).mean(1)
    if sampled.talks:
        found["turns"] = sampled.per_prompt([len(talk.turns) for talk in sampled.talks]).mean(1)
    if greedy is not None:
        found["greedy_length"] = greedy.per_prompt(greedy.lengths)[:, 0]
    found["cut_off"] = sampled.per_prompt([not ended for ended in sampled.finished]).mean(1)
    return found


def prompts_of(
    settings: MeasuringSettings, generator: Generator, world: World | None
) -> list[Prompt]:
    """The prompts that the settings ask for, none too long for the model."""
    data, tokenizer = settings.data, generator.tokenizer
    room = generator.policy.context_length - settings.sampling.max_new_tokens
    held_out, of_data = settings.held_out, (data, tokenizer, room)
    may_lack = settings.has_episodes
    if generator.environments is not None and data.path is None:
        return [Prompt("", [])] * (settings.size or EPISODES)
    if held_out is None:
        held_out = data.eval_path is not None or data.eval_split is not None
    if world is not None:
        rows = world.held_out_rows if held_out is not False else world.train_rows
        found = prompts_from_rows(rows, tokenizer, room)
    elif held_out:
        found = load_prompts(*of_data, may_lack_prompts=may_lack).held_out  # type: ignore[assignment]
    else:
        found = load_all_prompts(*of_data, may_lack_prompts=may_lack)
    size = settings.size or len(found)
    return list(taken(found, subset(len(found), size)))


def rewards_of(settings: MeasuringSettings, world: World | None) -> ScoringSettings:
    """The rewards of the settings, or the world's own."""
    rewards = settings.rewards
    if world is None or rewards.functions or rewards.models:
        return rewards
    own = {"functions": world.reward_functions, "models": world.reward_models}
    return type(rewards)(**{**rewards.model_dump(), **own})


def scorer_of(
    settings: MeasuringSettings,
    generator: Generator,
    prompts: list[Prompt],
    rewards: ScoringSettings,
    functions: ScoringFunctions,
) -> Scorer:
    """The rewards, ready to score responses to `prompts`. functions: theirs, `started`."""
    ends = generator.policy.eos_token_ids
    return Scorer(
        rewards,
        columns=common_columns(Split(prompts, prompts)),
        device=str(generator.processes.device),
        trust_remote_code=settings.model.trust_remote_code,
        decode=partial(completion_text, generator.tokenizer, eos_token_ids=ends),
        special_tokens=settings.data.special_tokens,
        optional=getattr(settings, "environment", None) is not None,
        functions=functions,
    )
