"""A language-model run from settings to results: all parts, made in the order they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lmpg.algorithms import ALGORITHMS
from lmpg.cli import parse
from lmpg.config import LanguageSettings, Values
from lmpg.data.prompts import PromptSet, load_prompts
from lmpg.models.loading import load_policy, load_tokenizer
from lmpg.models.settings import ModelSettings
from lmpg.recipes.world import Recipe
from lmpg.rewards.scorer import Scorer
from lmpg.rewards.settings import RewardSettings
from lmpg.sampling.sampler import Sampler
from lmpg.sections import UserError
from lmpg.training.language import Judge, LanguageSource
from lmpg.training.lifecycle import carry_out
from lmpg.training.online import Online
from lmpg.training.processes import Processes
from lmpg.training.run_folder import RunFolder, open_run
from lmpg.training.selftest import require_sound, self_test
from lmpg.training.tracking import Tracker
from lmpg.training.update import Updater


def train(algorithm: str, recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Train a language model with `algorithm`, in the recipe's world or on the user's own parts."""

    def preset(given: Values) -> Values:
        own = given.get("model", {}).get("path") is not None
        return {} if own else recipe.preset(algorithm)

    settings = parse(LanguageSettings[ALGORITHMS[algorithm]], argv, preset)  # type: ignore[misc]
    processes = Processes()
    processes.announce()
    if settings.run.torch_threads:
        torch.set_num_threads(settings.run.torch_threads)
    folder = processes.on_main(lambda: open_run(settings, algorithm))
    if folder.status == "finished":
        if processes.is_main:
            print(f"{folder.path} has finished already; nothing to do", flush=True)
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
class Materials:
    """What a run works on: the user's own, or those of a built-in world."""

    model: ModelSettings
    rewards: RewardSettings
    tokenizer: Any
    prompts: PromptSet
    judge: Judge | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedRun:
    """A run about to start, with what must be closed at its end."""

    online: Online
    scorer: Scorer
    facts: dict[str, Any]


def materials(settings: LanguageSettings, recipe: Recipe, processes: Processes) -> Materials:
    """The user's model, data and rewards; without them, those of the recipe's world."""
    if settings.model.path is None:
        world = processes.on_main(recipe.build)
        model = settings.model.model_copy(update={"path": str(world.model_path)})
        rewards = settings.rewards.model_copy(
            update={"functions": world.reward_functions, "models": world.reward_models}
        )
        tokenizer = load_tokenizer(str(world.model_path))
        prompts = world.prompts(tokenizer)
        return Materials(model, rewards, tokenizer, prompts, world.judge, world.facts)
    tokenizer = load_tokenizer(settings.model.path, settings.model.trust_remote_code)
    return Materials(settings.model, settings.rewards, tokenizer, PromptSet([], []))


def prepare(
    settings: LanguageSettings, recipe: Recipe, folder: RunFolder, processes: Processes
) -> PreparedRun:
    """Make every part of a run; all bad input is refused here, before any work."""
    used = materials(settings, recipe, processes)
    torch.manual_seed(settings.run.seed)  # LoRA's factors are drawn from the global generator
    policy = load_policy(
        used.model,
        used.tokenizer,
        critic="critic" in settings.algorithm.needs,
        temperature=settings.sampling.temperature,
        device=processes.device,
    )
    prompts = used.prompts
    if settings.model.path is not None:
        room = policy.context_length - settings.sampling.max_new_tokens
        prompts = load_prompts(settings.data, used.tokenizer, room)
    source = LanguageSource(
        policy=policy,
        reference=policy.reference(),
        sampler=Sampler(policy, settings.sampling.max_new_tokens),
        scorer=Scorer(used.rewards, device=processes.device),
        prompts=prompts,
        tokenizer=used.tokenizer,
        algorithm=settings.algorithm,
        update=settings.update,
        evaluation=settings.evaluation,
        max_error_share=used.rewards.max_error_share,
        seed=settings.run.seed,
        processes=processes,
        judge=used.judge,
    )
    if folder.status == "fresh":
        check(source, settings)
    total_steps = settings.run.total_steps
    online = Online(
        policy=policy,
        algorithm=settings.algorithm,
        source=source,
        updater=Updater(policy, settings.update, total_steps, settings.run.seed, processes),
        tracker=Tracker(
            folder.path, settings.run.trackers, total_steps, main_process=processes.is_main
        ),
        folder=folder.path,
        settings=settings.run,
        evaluation=settings.evaluation,
        total_steps=total_steps,
        processes=processes,
        save_policy=lambda path: policy.save_pretrained(path, used.tokenizer),
    )
    return PreparedRun(online, source.scorer, used.facts)


def check(source: LanguageSource, settings: LanguageSettings) -> None:
    """The self-test of a new run, in one line; stops it where something is wrong."""
    prompts = [prompt.ids for prompt in source.prompts.train]
    result = self_test(source.policy, source.reference, source.sampler, prompts, source.seed)
    if source.processes.is_main:
        print(result.line(), flush=True)
    require_sound(result, source.policy.bf16)
