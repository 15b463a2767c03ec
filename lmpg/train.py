"""A language-model run from settings to results: all parts, made in the order they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.cli import parse
from lmpg.config import LanguageSettings, Values
from lmpg.data.prompts import PromptSet, load_prompts, prompts_from_rows
from lmpg.models.loading import load_policy, load_tokenizer
from lmpg.models.policy import CausalLMPolicy
from lmpg.models.settings import ModelSettings
from lmpg.recipes.world import Recipe, World
from lmpg.rewards.scorer import Scorer
from lmpg.rewards.settings import RewardSettings
from lmpg.sampling.sampler import Sampler
from lmpg.sections import UserError
from lmpg.training import checkpoint
from lmpg.training.language import LanguageSource
from lmpg.training.lifecycle import begin, carry_out
from lmpg.training.online import Online
from lmpg.training.processes import Processes
from lmpg.training.run_folder import RunFolder
from lmpg.training.selftest import require_sound, self_test
from lmpg.training.tracking import Tracker
from lmpg.training.update import Updater


def train(algorithm: str, recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Train a language model with `algorithm`, in the recipe's world or on the user's own parts."""

    def preset(given: Values) -> Values:
        own = given.get("model", {}).get("path") is not None
        return {} if own else recipe.preset(algorithm)

    chosen: Any = ALGORITHMS[algorithm]
    settings: LanguageSettings = parse(LanguageSettings[chosen], argv, preset)
    processes = Processes()
    processes.announce()
    folder = begin(settings, algorithm, processes)
    if folder.status == "finished":
        return
    try:
        run = prepare(settings, recipe, folder, processes)
    except UserError:
        if processes.is_main:
            folder.abandon()
        raise
    with run.scorer:
        carry_out(run.online, folder, algorithm, run.facts)


@dataclass(frozen=True)
class PreparedRun:
    """A run about to start, with what must be closed at its end and said in its summary."""

    online: Online
    scorer: Scorer
    facts: dict[str, Any]


def with_world(settings: LanguageSettings, world: World) -> LanguageSettings:
    """Settings in which the world's model and rewards stand where the user's own would."""
    model = {**settings.model.model_dump(), "path": str(world.model_path)}
    rewards = {
        **settings.rewards.model_dump(),
        "functions": world.reward_functions,
        "models": world.reward_models,
    }
    return settings.model_copy(
        update={"model": ModelSettings(**model), "rewards": RewardSettings(**rewards)}
    )


def prepare(
    settings: LanguageSettings, recipe: Recipe, folder: RunFolder, processes: Processes
) -> PreparedRun:
    """Make every part of a run; all bad input is refused here, before any work."""
    refuse_idle_processes(settings, processes)
    world = None
    if settings.model.path is None:
        processes.on_main(lambda: recipe.build() and None)
        world = recipe.build()
        settings = with_world(settings, world)
    tokenizer = load_tokenizer(str(settings.model.path), settings.model.trust_remote_code)
    torch.manual_seed(settings.run.seed)  # LoRA's factors are drawn from the global generator
    policy = load_policy(
        settings.model,
        tokenizer,
        critic="critic" in settings.algorithm.needs,
        temperature=settings.sampling.temperature,
        device=processes.device,
    )
    source = source_of(settings, policy, tokenizer, world, processes)
    if processes.is_main:
        print(source.prompts.line(), flush=True)
    if checkpoint.newest_step(folder.checkpoints) is None:
        check(source)
    online = assembled(settings, source, folder)
    return PreparedRun(online, source.scorer, world.facts if world else {})


def refuse_idle_processes(settings: LanguageSettings, processes: Processes) -> None:
    """Prompts are shared out, so there must be one for each process."""
    num_prompts = settings.update.rollout_size // settings.algorithm.group_size
    if num_prompts < processes.count:
        raise UserError(
            f"update.rollout_size = {settings.update.rollout_size} responses come from "
            f"{num_prompts} prompts, expected at least one for each of the {processes.count} "
            "processes; set a larger update.rollout_size, or start fewer processes"
        )


def source_of(
    settings: LanguageSettings,
    policy: CausalLMPolicy,
    tokenizer: Any,
    world: World | None,
    processes: Processes,
) -> LanguageSource:
    """Prompts, sampler, rewards and reference around the policy."""
    prompts = prompts_for(settings, policy, tokenizer, world)
    return LanguageSource(
        policy=policy,
        reference=policy.reference(),
        sampler=Sampler(policy, settings.sampling.max_new_tokens),
        scorer=Scorer(
            settings.rewards,
            columns=dict.fromkeys(name for prompt in prompts.train for name in prompt.columns),
            device=str(processes.device),
            trust_remote_code=settings.model.trust_remote_code,
        ),
        prompts=prompts,
        tokenizer=tokenizer,
        algorithm=settings.algorithm,
        update=settings.update,
        evaluation=settings.evaluation,
        max_error_share=settings.rewards.max_error_share,
        samples_every=settings.run.samples_every,
        seed=settings.run.seed,
        processes=processes,
        judge=world.judge if world else None,
    )


def prompts_for(
    settings: LanguageSettings, policy: CausalLMPolicy, tokenizer: Any, world: World | None
) -> PromptSet:
    """The user's prompts or the world's, none so long that the context leaves no response."""
    room = policy.context_length - settings.sampling.max_new_tokens
    if world is None:
        return load_prompts(settings.data, tokenizer, room)
    train = prompts_from_rows(world.train_rows, tokenizer, room)
    return PromptSet(train, prompts_from_rows(world.held_out_rows, tokenizer, room))


def assembled(settings: LanguageSettings, source: LanguageSource, folder: RunFolder) -> Online:
    """The loop over the source, with its optimizer and its tracker."""
    run, processes, policy = settings.run, source.processes, source.policy
    return Online(
        policy=policy,
        algorithm=settings.algorithm,
        source=source,
        updater=Updater(policy, settings.update, run.total_steps, run.seed, processes),
        tracker=Tracker(folder.path, run.trackers, run.total_steps, main_process=processes.is_main),
        folder=folder.path,
        settings=run,
        every=settings.evaluation.every,
        total_steps=run.total_steps,
        processes=processes,
        save_policy=lambda path: policy.save_pretrained(path, source.tokenizer),
    )


def check(source: LanguageSource) -> None:
    """The self-test of a new run, in one line; stops it where something is wrong."""
    prompts = [prompt.ids for prompt in source.prompts.train]
    result = self_test(source.policy, source.reference, source.sampler, prompts, source.seed)
    if source.processes.is_main:
        print(result.line(), flush=True)
    require_sound(result, source.policy.bf16)
