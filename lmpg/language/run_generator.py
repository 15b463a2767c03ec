"""The generator of a run: which engine samples for it, and where its old log-probs come from."""

from __future__ import annotations

from typing import Any

from lmpg.language.data.examples import Split
from lmpg.language.data.prompts import Prompt
from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.rollouts.generation import Generator, stop_search
from lmpg.language.rollouts.preflight import ids_to_test
from lmpg.language.rollouts.several_turns import Environments
from lmpg.language.sampling.engine_choice import said_of, sampler_of
from lmpg.language.settings import LanguageSettings
from lmpg.runs.folder import RunFolder
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError
from lmpg.training.old_logprobs import OldLogprobs


def generator_for(
    settings: LanguageSettings,
    policy: CausalLMPolicy,
    tokenizer: Any,
    processes: Processes,
    keep_engine: bool,
    prompts: Split[Prompt],
    folder: RunFolder,
    environments: Environments | None = None,
) -> Generator:
    """The generator of completions, for training and evaluation. prompts: servers are tried with
    some of them. folder: of the run, where weights for servers may lie."""
    update, sampling = settings.update, settings.sampling
    tried = [*ids_to_test(prompts.train), *ids_to_test(prompts.held_out)]
    sampler = sampler_of(
        sampling,
        policy,
        tokenizer,
        processes,
        stop_search(sampling.stop, tokenizer, policy),
        keep_engine=keep_engine,
        compared=update.sampler_correction != "none",
        prompts=tried,
        folder=folder.path / "server_weights",
    )
    sampler.publish(processes)
    lines = said_of(sampler, sampling, tried)  # tries the engine: all processes gather weights
    if processes.is_main:
        print("\n".join(lines), flush=True)
    return Generator(
        policy=policy,
        sampler=sampler,
        tokenizer=tokenizer,
        seed=settings.run.seed,
        processes=processes,
        microbatch_size=update.microbatch_size,
        microbatch_tokens=update.most_tokens,
        old_logprobs=old_logprobs_of(settings, sampler.exact, processes.count),
        environments=environments,
    )


def refuse_long_waits(settings: LanguageSettings, processes: Processes) -> None:
    """UserError where a process that waits for its server would be given up by the others."""
    longest, given_up = settings.sampling.server_timeout, settings.run.rank_timeout
    if settings.sampling.server and processes.count > 1 and longest > given_up:
        raise UserError(
            f"sampling.server_timeout = {longest:g} s is longer than run.rank_timeout = "
            f"{given_up:g} s, expected no longer: of {processes.count} processes one that waits "
            "for its server would be given up by the others; set run.rank_timeout to "
            f"{longest:g} or more, or sampling.server_timeout lower"
        )


def old_logprobs_of(settings: LanguageSettings, exact: bool, num_processes: int) -> OldLogprobs:
    """Where old log-probs come from; `exact` says that those of the sampler are. Of a rollout that
    was sampled ahead only the sampler knows them."""
    needs, update, sampling = settings.algorithm.needs, settings.update, settings.sampling
    return OldLogprobs.decided(
        needs,
        update,
        exact=exact or sampling.ahead > 0,
        same_rows=num_processes == 1 and sampling.max_refills == 0,
        compared=update.sampler_correction != "none" or bool(sampling.server),
    )
