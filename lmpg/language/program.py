"""A language-model run from settings to results: makes its parts and runs the loop over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmpg.language.data.prompts import Prompt, common_columns, load_prompts, prompts_from_rows
from lmpg.language.data.reasoning import PREFIX
from lmpg.language.data.splits import Split
from lmpg.language.data.tokenizing import completion_text
from lmpg.language.models.loading import load_policy, load_tokenizer
from lmpg.language.models.policy import CausalLMPolicy, Reference
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rewards.settings import RewardSettings
from lmpg.language.rollouts.collect import LanguageSource
from lmpg.language.rollouts.evaluation import HeldOut
from lmpg.language.rollouts.generation import Responder
from lmpg.language.rollouts.preflight import require_sound, self_test
from lmpg.language.rollouts.score_processing import Shaping
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.settings import LanguageSettings
from lmpg.language.worlds.registry import WORLDS, world_asked_for
from lmpg.language.worlds.world import World
from lmpg.runs import checkpoint
from lmpg.runs.folder import RunFolder
from lmpg.runs.tracking import Tracker
from lmpg.runtime.processes import Processes
from lmpg.settings.raw import RawSettings, merged
from lmpg.settings.section import Section, UserError
from lmpg.training.online import Online
from lmpg.training.run import begin, carry_out, refusals_leave_nothing
from lmpg.training.update import Updater


def train_language(settings: LanguageSettings, name: str, world: World | None = None) -> None:
    """Train a language model from settings to a finished run, which is called `name`.

    world: where to learn, instead of the built-in one that the settings ask for.
    """
    processes = Processes()
    processes.announce()
    folder = begin(settings, name, processes)
    if folder.status == "finished":
        return
    with refusals_leave_nothing(folder, processes):
        run = prepare(settings, folder, processes, world)
    with run.scorer:
        carry_out(run.online, folder, name, run.facts)


def suitable_settings(
    algorithm: type[Section], preset: RawSettings, given: RawSettings
) -> RawSettings:
    """`preset` over what suits the world that a run with these settings learns in; without a world,
    over the reward that belongs to the data and the passes that the algorithm can make.

    given: the user's own settings, which win over all that.
    """
    world = world_asked_for(merged(preset, given))
    if world is not None:
        return merged(WORLDS[world].preset(algorithm), preset)
    return merged(own_reward(given), passes(algorithm), preset)


def passes(algorithm: type[Section]) -> RawSettings:
    """One epoch for algorithms without ratios: their gradient is that of the policy that sampled,
    which is gone after the first pass."""
    return {} if "ratios" in algorithm().needs else {"update": {"epochs": 1}}  # type: ignore


def own_reward(given: RawSettings) -> RawSettings:
    """The reward that belongs to the data (reasoning-gym tasks), where the user names none."""
    source, rewards = given.get("data", {}).get("path"), given.get("rewards", {})
    if not str(source).startswith(PREFIX) or rewards.get("functions") or rewards.get("models"):
        return {}
    return {"rewards": {"functions": ["reasoning_gym"]}}


@dataclass(frozen=True)
class PreparedRun:
    """A run about to start. scorer is closed at its end; facts go into its summary."""

    online: Online
    scorer: Scorer
    facts: dict[str, Any]


def with_world(settings: LanguageSettings, world: World) -> LanguageSettings:
    """`settings` with the world's model, and with its rewards where the user gives none."""
    model = {**settings.model.model_dump(), "path": str(world.model_path)}
    rewards = settings.rewards.model_dump()
    if not (settings.rewards.functions or settings.rewards.models):
        rewards |= {"functions": world.reward_functions, "models": world.reward_models}
    return settings.model_copy(
        update={"model": ModelSettings(**model), "rewards": RewardSettings(**rewards)}
    )


def prepare(
    settings: LanguageSettings,
    folder: RunFolder,
    processes: Processes,
    world: World | None = None,
) -> PreparedRun:
    """Make every part of a run; all bad input is refused here, before any work."""
    refuse_idle_processes(settings, processes)
    world = world or _built(settings, processes)
    settings = with_world(settings, world) if world else settings
    tokenizer = load_tokenizer(str(settings.model.path), settings.model.trust_remote_code)
    torch.manual_seed(settings.run.seed)  # LoRA's factors are drawn from the global generator
    policy = load_policy(
        settings.model,
        tokenizer,
        critic="critic" in settings.algorithm.needs,
        temperature=settings.sampling.temperature,
        device=processes.device,
        reward_model=next(iter(settings.rewards.models), None),
    )
    source = source_of(settings, policy, tokenizer, world, processes)
    if checkpoint.newest_step(folder.checkpoints) is None:
        check(source)
    online = assembled(settings, source, folder)
    return PreparedRun(online, source.scorer, world.facts if world else {})


def _built(settings: LanguageSettings, processes: Processes) -> World | None:
    """The built-in world that the settings ask for, made by the main process."""
    name = world_asked_for(settings.model_dump())
    if name is None:
        return None
    start = Path(settings.model.path) if settings.model.path else None
    own_rewards = bool(settings.rewards.functions or settings.rewards.models)
    if processes.is_main:
        print(f"built-in world: {name} (data.world)", flush=True)

    def build() -> World:
        return WORLDS[name].build(start, not own_rewards)

    processes.on_main(lambda: build() and None)
    return build()


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
    if processes.is_main:
        print(prompts.line(), flush=True)
    update, run = settings.update, settings.run
    scorer = scorer_for(settings, prompts, tokenizer, processes)
    sampling = settings.sampling
    sampler = Sampler(policy, sampling.max_new_tokens, sampling.top_k, sampling.top_p)
    sizes = (update.microbatch_size, update.microbatch_tokens)
    whole = whole_update(settings, processes)
    responder = Responder(policy, sampler, tokenizer, run.seed, processes, *sizes, whole)
    reference, compared = references(settings, policy)
    judge = world.eval_metric if world else None
    rows = update.rollout_size
    held_out = (prompts.held_out, settings.evaluation.size, rows)
    return LanguageSource(
        responder=responder,
        reference=reference,
        scorer=scorer,
        shaping=Shaping(settings.rewards, sampling.max_new_tokens),
        prompts=prompts.train,
        held_out=HeldOut(responder, *held_out, scorer, compared, judge),
        algorithm=settings.algorithm,
        rollout_size=rows,
        max_error_share=settings.rewards.max_error_share,
        samples_every=run.samples_every,
        chunks=settings.rewards.chunks,
        max_refills=sampling.max_refills,
        sampled_will_do=old_is_new(settings),
    )


def scorer_for(
    settings: LanguageSettings, prompts: Split[Prompt], tokenizer: Any, processes: Processes
) -> Scorer:
    """The rewards, ready to score responses to these prompts."""
    return Scorer(
        settings.rewards,
        columns=common_columns(prompts),
        device=str(processes.device),
        trust_remote_code=settings.model.trust_remote_code,
        decode=partial(completion_text, tokenizer),
    )


def old_is_new(settings: LanguageSettings) -> bool:
    """Whether π_old is the policy that the update finds, and credit doesn't ask for log-probs."""
    update, algorithm = settings.update, settings.algorithm
    steps = update.epochs * update.rollout_size // update.minibatch_size
    kl_in_reward = "reference" in algorithm.needs and algorithm.kl_in == "reward"
    return steps == 1 and "critic" not in algorithm.needs and not kl_in_reward


def whole_update(settings: LanguageSettings, processes: Processes) -> bool:
    """Whether an update's first pass is over the very rows of the rollout, all in one forward."""
    update = settings.update
    together = update.rollout_size <= min(update.minibatch_size, update.microbatch_size)
    in_order = processes.count == 1 and settings.sampling.max_refills == 0
    return together and in_order and not update.microbatch_tokens


def references(
    settings: LanguageSettings, policy: CausalLMPolicy
) -> tuple[Reference | None, Reference | None]:
    """The policy as it is now, for training and for evaluation; no copy where nobody asks."""
    learning = "reference" in settings.algorithm.needs
    if not learning and not settings.evaluation.kl:
        return None, None
    found = policy.reference()
    return found if learning else None, found if settings.evaluation.kl else None


def prompts_for(
    settings: LanguageSettings, policy: CausalLMPolicy, tokenizer: Any, world: World | None
) -> Split[Prompt]:
    """The user's prompts or the world's, none so long that the context leaves no response."""
    room = policy.context_length - settings.sampling.max_new_tokens
    if world is None:
        return load_prompts(settings.data, tokenizer, room)
    train = prompts_from_rows(world.train_rows, tokenizer, room)
    return Split(train, prompts_from_rows(world.held_out_rows, tokenizer, room))


def assembled(settings: LanguageSettings, source: LanguageSource, folder: RunFolder) -> Online:
    """The loop over the source, with its optimizer and its tracker."""
    run, processes, responder = settings.run, source.processes, source.responder
    policy, length = responder.policy, settings.sampling.max_new_tokens
    return Online(
        policy=policy,
        algorithm=settings.algorithm,
        source=source,
        updater=Updater(
            *(policy, settings.update, run.total_steps, run.seed, processes, length),
            old_is_new=policy.bf16 and source.sampled_will_do,
        ),
        tracker=Tracker(folder.path, run.trackers, run.total_steps, main_process=processes.is_main),
        folder=folder.path,
        settings=run,
        every=settings.evaluation.every,
        total_steps=run.total_steps,
        processes=processes,
        save_policy=lambda path: policy.save_pretrained(path, responder.tokenizer),
    )


def check(source: LanguageSource) -> None:
    """The self-test of a new run, in one line; stops it where something is wrong."""
    responder, prompts = source.responder, [prompt.ids for prompt in source.prompts]
    policy = responder.policy
    reference = source.reference or source.held_out.reference
    sampler, seed = responder.sampler, responder.seed
    result = self_test(policy, reference, sampler, prompts, seed, source.sampled_will_do)
    if source.processes.is_main:
        print(result.line(), flush=True)
    require_sound(result, policy.bf16)
