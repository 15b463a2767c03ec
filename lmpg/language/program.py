"""A language-model run from settings to results: makes its parts and runs the loop over them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmpg.language.built_in import built_world, with_world
from lmpg.language.data.examples import Split
from lmpg.language.data.prompts import EvalMetric, Prompt
from lmpg.language.data.tokenizing import completion_text, reading_tokenizer
from lmpg.language.forecast import wants_reference, with_fitting_microbatches, work_of
from lmpg.language.models.loading import load_policy, load_reference, tokenizer_of
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import num_weights
from lmpg.language.models.reference import Reference
from lmpg.language.models.start.shared_out import loaded
from lmpg.language.rewards.scorer import Scorer, started
from lmpg.language.rollouts.arithmetic import as_it_began, settle
from lmpg.language.rollouts.collect import LanguageSource
from lmpg.language.rollouts.dynamic_sampling import DynamicSampling
from lmpg.language.rollouts.evaluation import Evaluator
from lmpg.language.rollouts.generation import Generator
from lmpg.language.rollouts.preflight import check, ids_to_test
from lmpg.language.rollouts.score_processing import ScoreProcessing
from lmpg.language.rollouts.scoring import GroupSampler
from lmpg.language.rollouts.several_turns import Environments
from lmpg.language.run_environments import environments_for, longest_response, pool_for
from lmpg.language.run_generator import generator_for, refuse_long_waits
from lmpg.language.run_inputs import inputs_of
from lmpg.language.run_prompts import begun, prompts_for, rows_for
from lmpg.language.run_rewards import scorer_for
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.world import World
from lmpg.runs import checkpoint
from lmpg.runs.fingerprints import Inputs
from lmpg.runs.folder import RunFolder
from lmpg.runs.tracking import Tracker
from lmpg.runtime.machine import give_back_freed_memory
from lmpg.runtime.processes import Processes
from lmpg.runtime.spread import spread
from lmpg.settings.section import UserError
from lmpg.training.given import NOTHING, Given, kept
from lmpg.training.old_logprobs import sampler_weights
from lmpg.training.online import Online
from lmpg.training.run import begin, nothing_left_before_the_first_step, run
from lmpg.training.update import Updater


def train_language(
    settings: LanguageSettings,
    name: str,
    world: World | None = None,
    given: Given = NOTHING,
) -> Path:
    """Train a language model from settings to a finished run, which is called `name`; returns its
    folder.

    world: where to learn, instead of the built-in one that the settings ask for. given: objects
    that the settings name.
    """
    processes = Processes()
    processes.announce()
    settings = processes.launch.obeyed_by(settings)
    folder = begin(settings, name, processes)
    if folder.status == "finished":
        return folder.path
    with nothing_left_before_the_first_step(folder, processes):
        settings = kept(given, settings, folder, processes)
        with ExitStack() as opened:
            prepared = prepare(settings, folder, processes, opened, world, given)
            keep = partial(prepared.keep_sources, folder.path / "reward_sources")
            rest = prepared.facts, prepared.inputs, keep, "text-generation"
            run(prepared.online, folder, name, *rest)
    return folder.path


@dataclass(frozen=True)
class PreparedRun:
    """A run about to start. facts go into its summary; inputs are what it must find unchanged when
    it is resumed."""

    online: Online
    scorer: Scorer
    environments: Environments | None
    facts: dict[str, Any]
    inputs: Inputs

    def keep_sources(self, folder: Path) -> None:
        """Writes to `folder` the local modules that rewards and environments have imported."""
        self.scorer.keep_sources(folder)
        if self.environments is not None:
            self.environments.pool.keep_sources(folder)


def prepare(
    settings: LanguageSettings,
    folder: RunFolder,
    processes: Processes,
    opened: ExitStack,
    world: World | None = None,
    given: Given = NOTHING,
) -> PreparedRun:
    """Make every part of a run, which `opened` closes; bad input is refused before any work."""
    refuse_unfit_processes(settings, processes)
    world, asked = world or built_world(settings, processes), settings.model.precision
    settings = as_it_began(with_world(settings, world) if world else settings, folder, processes)
    functions = started(settings.rewards, given.functions, opened)
    rows = rows_for(settings, world, functions)
    tokenizer = reading_tokenizer(tokenizer_of(settings.model), settings.data)
    asked_for = settings.environment, settings.data, tokenizer
    pool = pool_for(opened, *asked_for, given.functions)
    spread(processes, settings.run.sharding, settings.update.optimizer)
    policy = policy_for(settings, tokenizer, processes)
    facts = settle(asked, settings.model, policy.bf16, policy.causal_lm, folder, processes)
    policy.head.forbid_early(policy.eos_token_ids, settings.sampling.min_new_tokens)
    with processes.in_turn():
        own = load_reference(settings.model, tokenizer, policy)
    give_back_freed_memory()
    at_end = settings.rewards.truncated == "bootstrap"
    environments = environments_for(pool, *asked_for, policy.eos_token_ids, observes_end=at_end)
    prompts = prompts_for(settings, policy, tokenizer, world, environments, rows, processes.is_main)
    shown = begun(prompts, environments, settings.run.seed)
    decode = partial(completion_text, tokenizer, eos_token_ids=policy.eos_token_ids)
    scorer = opened.enter_context(scorer_for(settings, prompts, decode, processes, functions))
    processes.suit_threads(num_weights(policy) + scorer.num_weights)
    work = work_of(settings, policy, own, scorer.num_bytes, shown, processes)
    settings, keep_engine = with_fitting_microbatches(settings, work, processes)
    rest = processes, keep_engine, shown, folder, environments
    generator = generator_for(settings, policy, tokenizer, *rest)
    source = source_of(settings, generator, scorer, prompts, world, own)
    check_new(folder, source, own, shown)
    made, facts = assembled(settings, source, folder, given), facts | (world.facts if world else {})
    inputs = inputs_of(settings, world, given.functions)
    return PreparedRun(made, scorer, environments, facts, inputs)


def check_new(
    folder: RunFolder, source: LanguageSource, own: Reference | None, prompts: Split[Prompt]
) -> None:
    """Tests the model of a run that has no checkpoint to go on from."""
    newest = source.generator.processes.on_main(lambda: checkpoint.newest_step(folder.checkpoints))
    if newest is None:
        first = (source.reference or source.evaluator.reference) if own is None else None
        check(source.generator, first, ids_to_test(prompts.train))


def policy_for(settings: LanguageSettings, tokenizer: Any, processes: Processes) -> CausalLMPolicy:
    """The policy, where it is to compute."""
    torch.manual_seed(settings.run.seed)  # LoRA's factors are drawn from the global generator
    load = partial(
        load_policy,
        settings.model,
        tokenizer,
        critic="critic" in settings.algorithm.needs,
        temperature=settings.sampling.temperature,
        device=processes.device,
        reward_model=next(iter(settings.rewards.models), None),
    )
    return loaded(load, processes)


def refuse_unfit_processes(settings: LanguageSettings, processes: Processes) -> None:
    """Prompts are shared out, so there must be one for each process, and for none of them may the
    others wait in vain."""
    refuse_long_waits(settings, processes)
    num_prompts = settings.update.rollout_size // settings.algorithm.group_size
    if num_prompts < processes.count:
        raise UserError(
            f"update.rollout_size = {settings.update.rollout_size} responses come from "
            f"{num_prompts} prompts, expected at least one for each of the {processes.count} "
            "processes; set a larger update.rollout_size, or start fewer processes"
        )


def metric_of(settings: LanguageSettings, world: World | None) -> EvalMetric | None:
    """The world's own metric, which knows nothing of episodes in an environment of the user's."""
    talks = settings.environment.wanted and not settings.environment.is_built_in
    return None if world is None or talks else world.eval_metric


def source_of(
    settings: LanguageSettings,
    generator: Generator,
    scorer: Scorer,
    prompts: Split[Prompt],
    world: World | None,
    own: Reference | None = None,
) -> LanguageSource:
    """The source of rollouts, with its evaluator; dynamic sampling only where it is asked for."""
    algorithm, sampling = settings.algorithm, settings.sampling
    rows, refills = settings.update.rollout_size, sampling.max_refills
    sampler = GroupSampler(
        generator, scorer, prompts.train, algorithm, rows // algorithm.group_size
    )
    reference, compared = references(settings, generator.policy, own)
    if "divergence" in algorithm.needs and own is not None:
        generator.policy.learn_from(own, algorithm.beta)
    judged = settings.gives_rewards or compared is None
    return LanguageSource(
        generator=generator,
        sampler=DynamicSampling(sampler, refills) if refills else sampler,
        processing=ScoreProcessing(settings.rewards, sampling.max_new_tokens),
        reference=reference,
        algorithm=algorithm,
        evaluator=Evaluator(
            generator=generator,
            prompts=prompts.held_out,
            rows=rows,
            scorer=scorer,
            reference=compared,
            eval_metric=metric_of(settings, world),
            **settings.evaluation.model_dump(exclude={"every", "kl"}),
        ),
        samples_every=settings.run.samples_every,
        total_steps=settings.run.total_steps,
        token_view=settings.run.token_view,
        refresh_every=settings.model.reference_refresh,
        best_metric="reward" if judged else "kl",
        lower_is_better=not judged,
    )


def references(
    settings: LanguageSettings, policy: CausalLMPolicy, own: Reference | None = None
) -> tuple[Reference | None, Reference | None]:
    """The user's own, or the policy as it is now, for training and for evaluation: one copy, None
    where unused."""
    wanted = wants_reference(settings, policy, own)
    if not any(wanted):
        return None, None
    found = own or policy.reference(refreshed=settings.model.reference_refresh > 0)
    return found if wanted[0] else None, found if wanted[1] else None


def assembled(
    settings: LanguageSettings,
    source: LanguageSource,
    folder: RunFolder,
    given: Given = NOTHING,
) -> Online:
    """The loop over the source, with its optimizer and its tracker."""
    run, generator = settings.run, source.generator
    policy, processes = generator.policy, generator.processes
    return Online(
        policy=policy,
        algorithm=settings.algorithm,
        source=source,
        updater=Updater(
            policy=policy,
            settings=settings.update,
            total_steps=run.total_steps,
            seed=run.seed,
            processes=processes,
            max_length=longest_response(settings),
            old_logprobs=generator.old_logprobs,
            sampler_weights=sampler_weights(settings.update),
        ),
        tracker=Tracker(folder.path, run.total_steps, main_process=processes.is_main),
        folder=folder.path,
        settings=run,
        every=settings.evaluation.every,
        total_steps=run.total_steps,
        processes=processes,
        save_policy=lambda path: policy.save_pretrained(path, generator.tokenizer),
        on_step=given.on_step,
    )
