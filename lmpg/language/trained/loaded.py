"""From the place of a model to the generator that asks it, which samples as training does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmpg.language.data.settings import DataSettings
from lmpg.language.data.tokenizing import reading_tokenizer
from lmpg.language.models.critic import FOLDER
from lmpg.language.models.loading import load_policy, tokenizer_of
from lmpg.language.models.precision import num_weights
from lmpg.language.models.settings import ModelSettings
from lmpg.language.rollouts.generation import Generator, stop_search
from lmpg.language.sampling.sampler import Sampler
from lmpg.language.trained.command_settings import AskingSettings
from lmpg.language.trained.of_run import model_folder
from lmpg.runs.settings import MOST_THREADS
from lmpg.runtime.machine import give_back_freed_memory, keep_freed_memory, threads_by_environment
from lmpg.runtime.processes import Processes
from lmpg.settings.section import UserError


def began(settings: AskingSettings) -> Processes:
    """This process and those beside it, with the CPU threads that the settings ask for."""
    keep_freed_memory()
    processes = Processes()
    processes.launch.refuse_what_is_not(settings.model.precision, "this command")
    if count := settings.torch_threads or threads_by_environment(MOST_THREADS):
        processes.fix_threads(count, "as asked for")
    return processes


def began_alone(settings: AskingSettings) -> Processes:
    """The same for what one process does; UserError where there are several."""
    processes = began(settings)
    refuse_several(processes)
    return processes


def refuse_several(processes: Processes) -> None:
    """UserError where a launcher has started several processes of a command for one."""
    if processes.count > 1:
        raise UserError(
            f"{processes.count} processes were started, expected one, as this command does not "
            "share its work out; start it without a launcher (`lmpg evaluate` does)"
        )


def loaded(
    settings: AskingSettings,
    data: DataSettings,
    processes: Processes,
    other: dict[str, Any] | None = None,
    tell: Callable[[str], object] | None = None,
    learns: bool = False,
) -> Generator:
    """The model of the settings, ready to answer; nothing in it learns, unless it `learns`: then
    its weights have gradients, and it has a critic, the one that was trained with it or a new one.

    other: path, revision and tokenizer of another model, in place of theirs.
    tell: is given the first response piece by piece, as it is sampled.
    """
    named = settings.model.model_dump()
    if other is None:
        named["path"] = model_folder(str(named["path"]))
    else:
        named |= {"revision": None, "tokenizer": None, **other}
    if learns and (Path(named["path"]).expanduser() / FOLDER).is_dir():
        named["critic"] = "separate"
    model, sampling = ModelSettings(**named), settings.sampling
    tokenizer = reading_tokenizer(tokenizer_of(model), data)
    policy = load_policy(
        model,
        tokenizer,
        critic=learns,
        temperature=sampling.temperature,
        device=processes.device,
        key="model.path" if other is None else "compare",
        learns=learns,
    )
    policy.head.forbid_early(policy.eos_token_ids, sampling.min_new_tokens)
    give_back_freed_memory()
    processes.suit_threads(num_weights(policy))
    limits = sampling.max_new_tokens, sampling.top_k, sampling.top_p
    stops = stop_search(sampling.stop, tokenizer, policy, tell)
    sampler = Sampler(policy, *limits, stops=stops)
    return Generator(policy, sampler, tokenizer, settings.seed, processes, 1)
