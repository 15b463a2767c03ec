"""All rewards of a run together: the weighted sum per response, with failures counted."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import mul
from pathlib import Path
from types import MappingProxyType

from lmpg.language.data.tokenizing import read_special_tokens
from lmpg.language.rewards.functions import FunctionReward
from lmpg.language.rewards.local_functions import LocalFunction
from lmpg.language.rewards.local_sources import save
from lmpg.language.rewards.process_rewards import Decode, pieces, step_ends
from lmpg.language.rewards.request import Reward, RewardReply, RewardRequest
from lmpg.language.rewards.settings import ScoringSettings
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)
MAX_WARNINGS = 5  # of each reward
LARGEST = 1e18  # of a score's magnitude
Step = tuple[int, float]
TokenRewards = defaultdict[int, float]  # token index → weighted reward


@dataclass(frozen=True)
class Scores:
    """Scores of B responses.

    totals: weighted sum over the rewards; None for a response that one of them gave no score.
    errors: number of such responses. messages: what went wrong, each kind once, with its count.
    steps: per response the (token index, weighted reward) pairs of process rewards, which are
        part of its total; in the order of the tokens, each once.
    """

    totals: list[float | None]
    by_reward: dict[str, list[float | None]]
    errors: int
    messages: list[str]
    steps: list[list[Step]]

    def rows(self, index: list[int]) -> Scores:
        """The scores with only the responses in `index`, in that order."""
        totals = [self.totals[i] for i in index]
        by_reward = {name: [x[i] for i in index] for name, x in self.by_reward.items()}
        steps = [self.steps[i] for i in index]
        return Scores(totals, by_reward, totals.count(None), self.messages, steps)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].by_reward
        return cls(
            totals=[x for part in parts for x in part.totals],
            by_reward={name: [x for part in parts for x in part.by_reward[name]] for name in names},
            errors=sum(part.errors for part in parts),
            messages=[x for part in parts for x in part.messages],
            steps=[x for part in parts for x in part.steps],
        )


def listed(messages: list[str]) -> str:
    """The first kinds of what went wrong, a line each, to end an error with."""
    return "".join(f"\n  {text}" for text in list(dict.fromkeys(messages))[:MAX_WARNINGS])


class Scorer:
    """The rewards of `settings`; imports every function and loads every model at once.

    columns: names of the data's columns where they are known, so that a function that needs
    another one is refused now. decode: (ids before, ids) → text of the ids, to find the tokens of
    steps. special_tokens: as in the settings section `data`. optional: without any reward every
    response scores 0. given: functions that were given as objects, by their names in the settings.
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
        given: Mapping[str, Callable] = MappingProxyType({}),
    ):
        if not (settings.functions or settings.models or optional):
            said = "use --rewards.functions FILE.py:NAME, --rewards.models PATH, or both."
            raise UserError(f"no reward is given: {said}")
        self._settings = settings
        self._decode = decode
        self._rewards: dict[str, Reward] = {}
        self._said: defaultdict[str, set[str]] = defaultdict(set)
        self._kept: Path | None = None
        try:
            self._add_functions(settings, columns, given)
            if settings.models:
                from lmpg.language.rewards.reward_model import ModelReward
            for path in settings.models:
                model = ModelReward.load(
                    path, trust_remote_code=trust_remote_code, device=device, dtype=dtype
                )
                read_special_tokens(model.tokenizer, special_tokens)
                self._add(model, Path(path).parent.name)
        except BaseException:
            self.close()
            raise
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
        completions: list[str],
        completion_ids: list[list[int]],
        columns: dict[str, list],
    ) -> PendingScores:
        """Starts scoring B responses: functions in the background, models when the result is asked.

        Every argument has (or holds lists with) one entry per response. prompts: as written.
        """
        request = RewardRequest(prompts, completions, completion_ids, columns)
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
        separator, texts = self._settings.step_separator, request.completions
        return replace(
            request,
            completion_steps=[pieces(text, separator) for text in texts],
            token_indices=[
                step_ends(t, row, separator, self._decode) for t, row in zip(texts, ids)
            ],
        )

    def _add_functions(
        self,
        settings: ScoringSettings,
        columns: Iterable[str] | None,
        given: Mapping[str, Callable],
    ) -> None:
        known = None if columns is None else list(columns)
        if known is not None and settings.process == "step":
            known.append("completion_steps")
        for spec in settings.functions:
            reward: FunctionReward | LocalFunction
            if spec in given:
                reward = LocalFunction(given[spec], spec)
            else:
                reward = FunctionReward(spec, settings.timeout, settings.workers)
            self._add(reward, reward.qualifier)
            if known is not None:
                reward.check_columns(known)

    def _add(self, reward: Reward, qualifier: str) -> None:
        """Adds a reward under its name, or if that is taken, with its source or a number."""
        name = reward.name
        if name in self._rewards and qualifier != name:
            name = f"{qualifier}.{name}"
        number = 2
        while name in self._rewards:
            name, number = f"{reward.name}_{number}", number + 1
        self._rewards[name] = reward


@dataclass(frozen=True)
class PendingScores:
    """Scores of a request that is being scored; `replies` are its rewards' pending replies."""

    scorer: Scorer
    request: RewardRequest
    replies: dict[str, Callable[[], RewardReply]]

    def result(self) -> Scores:
        """Waits for the replies of all rewards, and returns their weighted sum."""
        count, weights = len(self.request.completions), self.scorer.weights
        by_reward: dict[str, list[float | None]] = {}
        messages = []
        steps: list[TokenRewards] = [defaultdict(float) for _ in range(count)]
        for weight, (name, pending) in zip(weights, self.replies.items()):
            reply = pending()
            by_reward[name] = _summed(reply, self.request, weight, steps)
            if reply.notes or reply.messages:
                self.scorer.warn_once(name, [*reply.notes, *reply.messages])
            for text, times in Counter(reply.messages).items():
                messages.append(f"{name}: {times} of {count} without a score: {text}")
        totals: list[float | None] = []
        too_large = 0
        rows = zip(*by_reward.values()) if by_reward else [()] * count
        for scores, token_rewards in zip(rows, steps):
            total = None if None in scores else sum(map(mul, weights, scores), 0.0)
            if total is not None and not _fits(total, token_rewards):
                total, too_large = None, too_large + 1
            totals.append(total)
        if too_large:
            said = f"it is beyond ±{LARGEST:g}, expected less"
            messages.append(f"{too_large} of {count} without a score: {said}")
        placed = [sorted(x.items()) if t is not None else [] for x, t in zip(steps, totals)]
        return Scores(totals, by_reward, totals.count(None), messages, placed)


def _fits(total: float, token_rewards: TokenRewards) -> bool:
    """Whether float32 could hold the square of every number of a response.

    A score that is finite in float64 would else be inf in the loss, or in its spread.
    """
    return all(abs(x) < LARGEST for x in (total, *token_rewards.values()))


def _summed(
    reply: RewardReply, request: RewardRequest, weight: float, steps: list[TokenRewards]
) -> list[float | None]:
    """One score per response; the numbers of lists are added to `steps`, weighted."""
    for i, score in enumerate(reply.scores):
        if not isinstance(score, list):
            continue
        tokens = None if request.token_indices is None else request.token_indices[i]
        if tokens is None or len(tokens) != len(score):
            reply.scores[i] = None
            reply.messages.append(_wrong_count(len(score), tokens, request))
            continue
        for token, number in zip(tokens, score):
            steps[i][token] += weight * number
        reply.scores[i] = sum(score)
    return reply.scores


def _wrong_count(count: int, tokens: list[int] | None, request: RewardRequest) -> str:
    if tokens is None:
        return (
            f"it returned a list of {count} numbers for a completion, expected one number; "
            "for one per token or step set --rewards.process token or step"
        )
    what = "tokens" if request.completion_steps is None else "steps"
    return f"it returned {count} numbers for the {len(tokens)} {what} of a completion"
