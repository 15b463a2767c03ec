"""What a run on its own responses will need, out of its settings and its parts, and the micro-batch
that fits."""

from __future__ import annotations

from dataclasses import replace

from lmpg.language.data.examples import Split
from lmpg.language.data.prompts import Prompt, lengths_of
from lmpg.language.models.footprint.needs import Parts, Work, total
from lmpg.language.models.footprint.said import fitting_tokens, lines
from lmpg.language.models.footprint.shape import shape_of
from lmpg.language.models.forward.kept_weights import is_packed
from lmpg.language.models.lora import learning_beside, rank_of
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.models.precision import num_weights
from lmpg.language.models.reference import Reference
from lmpg.language.settings import LanguageSettings
from lmpg.runtime.processes import Processes
from lmpg.runtime.room import room_of_each


def with_fitting_microbatches(
    settings: LanguageSettings, work: Work, processes: Processes
) -> tuple[LanguageSettings, bool]:
    """`settings` in which `update.microbatch_tokens` is a number, and whether the engine is to keep
    its memory during updates; says what the run will need."""
    update, memory = settings.update, room_of_each(processes)
    said: list[str] = []
    if work.device == "cuda" and total(work) > update.memory_share * memory[0]:
        work = replace(work, engine_stays=False)
        said = ["engine: given back for each update, and made again after it, as memory is short"]
    if update.microbatch_tokens == "auto":
        found = processes.gather_list([fitting_tokens(work, update.memory_share, memory[0])])
        tokens, line = min(found, key=lambda x: x[0] or float("inf"))  # the same on every rank
        update = update.model_copy(update={"microbatch_tokens": tokens})
        said, work = [*said, line], fitted(work, tokens)
    if processes.is_main:
        print("\n".join([*lines(work, memory), *said]), flush=True)
    return settings.model_copy(update={"update": update}), work.engine_stays


def work_of(
    settings: LanguageSettings,
    policy: CausalLMPolicy,
    own: Reference | None,
    reward_models: int,
    prompts: Split[Prompt],
    processes: Processes,
) -> Work:
    """The sizes of a run. reward_models: their bytes."""
    longest = max(int(lengths_of(x).max(initial=0)) for x in (prompts.train, prompts.held_out))
    update, model = settings.update, shape_of(policy.causal_lm)
    of_minibatch = -(-update.minibatch_size // processes.count)
    rows = min(update.microbatch_size, of_minibatch)
    work = Work(
        model=model,
        rows=rows,
        prompt=longest,
        response=_response(settings, longest, policy.context_length),
        sampled=0 if settings.sampling.server else update.rollout_size,
        rank=rank_of(policy.model),
        besides=learning_beside(policy.model),
        packed=is_packed(policy.model),
        kept=policy.frozen_dtype.itemsize,
        product=2 if policy.bf16 else 4,
        saved=policy.saved_dtype.itemsize,
        optimizer=update.optimizer,
        critic_shape=None if policy.critic is None else shape_of(policy.critic.trunk),
        frozen=_frozen(settings, policy, own) | {"reward models": float(reward_models)},
        recompute=settings.model.gradient_checkpointing,
        several=of_minibatch > rows,
        count=processes.count,
        shards=processes.shards,
        device=policy.device.type,
    )
    tokens = update.microbatch_tokens
    return work if tokens == "auto" else fitted(work, tokens)


def _response(settings: LanguageSettings, prompt: int, context: int) -> int:
    """Tokens behind a prompt at most. Of several turns without a limit of their own, observations
    are taken to be as long as turns."""
    asked, one = settings.environment, settings.sampling.max_new_tokens
    if not asked.wanted or asked.max_turns == 1:
        return min(one, context - prompt)
    most = asked.max_tokens or prompt + 2 * asked.max_turns * one
    return max(1, min(most, context) - prompt)


def fitted(work: Work, tokens: int) -> Work:
    """`work` with micro-batches of so many tokens at most; 0 is no limit."""
    rows = min(work.rows, max(1, tokens // work.length)) if tokens else work.rows
    return replace(work, rows=rows, several=work.several or rows < work.rows)


def wants_reference(
    settings: LanguageSettings, policy: CausalLMPolicy, own: Reference | None
) -> tuple[bool, bool]:
    """Whether a reference is compared with while learning, and in evaluations."""
    learning, measured = "reference" in settings.algorithm.needs, settings.evaluation.kl
    if measured is None:
        measured = learning or own is not None or policy.reference_is_cheap
    return learning, measured


def _frozen(settings: LanguageSettings, policy: CausalLMPolicy, own: Reference | None) -> Parts:
    """Bytes of the models that are compared with."""
    if own is not None:
        name = "teacher" if settings.model.teacher else "reference"
        return {name: float(sum(p.nbytes for p in own.policy.parameters()))}
    if not any(wants_reference(settings, policy, own)):
        return {}
    refreshed = settings.model.reference_refresh > 0
    if policy.model is not policy.causal_lm:  # the model under the adapter
        learned = sum(p.nbytes for p in policy.model.parameters() if p.requires_grad)
        return {"reference": float(learned)} if refreshed else {}
    wide = 4 if refreshed else policy.frozen_dtype.itemsize
    return {"reference": float(wide * num_weights(policy.model))}
