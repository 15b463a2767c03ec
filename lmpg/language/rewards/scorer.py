"""All rewards of a run together: the weighted sum per response, with failures counted."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmpg.language.data.chat import Messages
from lmpg.language.data.tokenizing import read_special_tokens
from lmpg.language.rewards.functions import FunctionReward
from lmpg.language.rewards.local_functions import LocalFunction
from lmpg.language.rewards.local_sources import save
from lmpg.language.rewards.process_rewards import Decode, pieces, step_ends
from lmpg.language.rewards.request import Reward, RewardRequest
from lmpg.language.rewards.results.pending import PendingScores
from lmpg.language.rewards.results.scores import MAX_WARNINGS, Scores
from lmpg.language.rewards.settings import ScoringSettings
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)
Functions = Sequence[FunctionReward | LocalFunction]


def started(
    settings: ScoringSettings, given: Mapping[str, Callable], opened: ExitStack
) -> Functions:
    """The functions of the settings, imported, each in worker processes of its own, which `opened`
    closes; UserError where one is no good. given: those that were given as objects, by their names
    in the settings."""
    found: list[FunctionReward | LocalFunction] = []
    for spec in settings.functions:
        if spec in given:
            found.append(LocalFunction(given[spec], spec))
        else:
            found.append(FunctionReward(spec, settings.timeout, settings.workers))
        opened.callback(found[-1].close)
    return found


def check_columns(functions: Functions, columns: Iterable[str], settings: ScoringSettings) -> None:
    """UserError where a function needs a parameter that data with these columns do not give."""
    known = [*columns, *(["completion_steps"] if settings.process == "step" else [])]
    for function in functions:
        function.check_columns(known)


class Scorer:
    """The rewards of `settings`; imports every function and loads every model at once.

    columns: names of the data's columns where they are known, so that a function that needs
    another one is refused now. decode: (ids before, ids) → text of the ids, to find the tokens of
    steps. special_tokens: as in the settings section `data`. optional: without any reward every
    response scores 0. functions: those of the settings, where they were `started` before. state_at:
    iterations done → what functions get as `trainer_state`. done: how many there are.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        *,
        columns: Iterable[str] | None = None,
        device: str = "cpu",
        trust_remote_code: bool = False,
        dtype: str = "auto",
        decode: Decode | None = None,
        special_tokens: str = "tokens",
        optional: bool = False,
        functions: Functions = (),
        state_at: Callable[[int], dict[str, Any]] = lambda done: {"global_step": done},
    ):
        if not (settings.functions or settings.models or optional):
            said = "use --rewards.functions FILE.py:NAME, --rewards.models PATH, or both."
            raise UserError(f"no reward is given: {said}")
        self._settings = settings
        self._state_at, self.done = state_at, 0
        self._decode = decode
        self._rewards: dict[str, Reward] = {}
        self._said: defaultdict[str, set[str]] = defaultdict(set)
        self._kept: Path | None = None
        with ExitStack() as opened:
            self._add_functions(functions or started(settings, {}, opened), columns)
            if settings.models:
                from lmpg.language.rewards.reward_model import ModelReward
            for path in settings.models:
                model = ModelReward.load(
                    path, trust_remote_code=trust_remote_code, device=device, dtype=dtype
                )
                read_special_tokens(model.tokenizer, special_tokens)
                self._add(model, Path(path).parent.name)
            opened.pop_all()  # all is well, and closed by `close`
        self.num_weights = sum(getattr(x, "num_weights", 0) for x in self._rewards.values())
        self.num_bytes = sum(getattr(x, "num_bytes", 0) for x in self._rewards.values())
        self.weights = settings.weights or (1.0,) * len(self._rewards)

    @property
    def names(self) -> list[str]:
        """Names of the rewards, in the order of the weights."""
        return list(self._rewards)

    def submit(
        self,
        prompts: list,
        completions: Sequence[str | Messages],
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> PendingScores:
        """Starts scoring B responses: functions in the background, models when the result is asked.

        Every argument has (or holds lists with) one entry per response. prompts: as written.
        completions: text, or of several turns all messages.
        """
        state = self._state_at(self.done)
        request = RewardRequest(prompts, [*completions], completion_ids, columns, state=state)
        if self._settings.process != "none":
            request = self._with_token_indices(request)
        replies = {name: reward.submit(request) for name, reward in self._rewards.items()}
        return PendingScores(self, request, replies)

    def score(
        self,
        prompts: list,
        completions: list[str],
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> Scores:
        """`submit`, and the scores as soon as they are there."""
        return self.submit(prompts, completions, completion_ids, columns).result()

    def keep_sources(self, folder: Path) -> None:
        """Writes to `folder` the local modules that functions have imported, each as MODULE.py;
        those that they import later when the scorer is closed.

        What `folder` holds stays: another text of the same module gets a number.
        """
        if not folder.parent.is_dir():  # the run's was moved or deleted
            return
        self._kept = folder
        for reward in self._rewards.values():
            save(getattr(reward, "sources", {}), folder)

    def close(self) -> None:
        """Ends the workers; also done when the program ends."""
        if self._kept is not None:
            self.keep_sources(self._kept)
        for reward in self._rewards.values():
            reward.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warn_once(self, name: str, texts: list[str]) -> None:
        """Logs those texts about the reward `name` that were not logged before."""
        said = self._said[name]
        for text in dict.fromkeys(texts):
            if text not in said and len(said) < MAX_WARNINGS:
                said.add(text)
                last = "; no more is said of this reward" if len(said) == MAX_WARNINGS else ""
                logger.warning("reward %s: %s (said once%s)", name, text, last)

    def _with_token_indices(self, request: RewardRequest) -> RewardRequest:
        ids = request.completion_ids
        if self._settings.process == "token":
            return replace(request, token_indices=[list(range(len(row))) for row in ids])
        if self._decode is None:
            raise ValueError("rewards.process = 'step' needs `decode`, to find the steps' tokens")
        separator = self._settings.step_separator
        texts = [str(text) for text in request.completions]  # of one turn, see `LanguageSettings`
        return replace(
            request,
            completion_steps=[pieces(text, separator) for text in texts],
            token_indices=[
                step_ends(t, row, separator, self._decode) for t, row in zip(texts, ids)
            ],
        )

    def _add_functions(self, functions: Functions, columns: Iterable[str] | None) -> None:
        for reward in functions:
            self._add(reward, reward.qualifier)
        if columns is not None:
            check_columns(functions, columns, self._settings)

    def _add(self, reward: Reward, qualifier: str) -> None:
        """Adds a reward under its name, or if that is taken, with its source or a number."""
        name = reward.name
        if name in self._rewards and qualifier != name:
            name = f"{qualifier}.{name}"
        number = 2
        while name in self._rewards:
            name, number = f"{reward.name}_{number}", number + 1
        self._rewards[name] = reward
