"""The environments of a rollout's rows: begun together, stepped together, each failing alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lmpg.language.data.chat import ChatOptions, chat_options, text_or_messages
from lmpg.language.environments.interface import Outcome
from lmpg.language.environments.local_rows import LocalRows
from lmpg.language.environments.plan import Calls, Plan, plan_of
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.environments.text_episodes import Call, Result
from lmpg.language.environments.worker_rows import WorkerRows
from lmpg.language.rewards.local_sources import save
from lmpg.language.rewards.results.scores import MAX_WARNINGS
from lmpg.language.rewards.worker_process import plain
from lmpg.settings.section import UserError

logger = logging.getLogger(__name__)
CALLS = Calls()


class EnvironmentPool:
    """Environments of `settings`, one for each row of a rollout; imports and makes one at once.

    They live in worker processes; those given as objects of Python live here. A row whose
    environment throws, hangs, ends its process or returns nonsense is lost: its outcome has an
    `error`, which is logged once. given: objects by their names in the settings. calls: how the
    policy calls tools.
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        given: Mapping[str, Callable] = MappingProxyType({}),
        calls: Calls = CALLS,
    ):
        self._settings = settings
        self._said: set[str] = set()
        self._is_tried = False
        self._kept: Path | None = None
        self._options: list[ChatOptions] = []
        self._prompts: list[Any] = []
        self._lost: dict[int, str] = {}
        self.sources: dict[str, list[str]] = {}
        plan = plan_of(settings, given, calls, self.sources)
        self.name, self._key = plan.name, plan.key
        self._parts: Sequence[WorkerRows | LocalRows]
        self._parts = [LocalRows(plan)] if plan.is_local else self._started(plan)

    def reset(self, rows: list[dict[str, Any]], seeds: list[int]) -> list[Outcome]:
        """Begins an episode in each row and ends all earlier ones; the first observations.

        rows: columns of the data, {} where there is none; they are the environments' options.
        """
        self._lost = {}
        rows = [_plain(row, self.name) for row in rows]
        self._options = [chat_options(row, "a row of the data") for row in rows]
        self._prompts = [row.get("prompt") for row in rows]
        calls = [
            {"row": i, "seed": seed, "options": row}
            for i, (row, seed) in enumerate(zip(rows, seeds, strict=True))
        ]
        outcomes = self._outcomes(calls, fresh=True)
        return [outcomes[i] for i in range(len(rows))]

    def step(self, actions: dict[int, str]) -> dict[int, Outcome]:
        """The next outcome of each row that took a turn; rows that were lost stay so."""
        calls = [{"row": row, "action": x} for row, x in actions.items() if row not in self._lost]
        outcomes = self._outcomes(calls)
        return {
            row: outcomes[row] if row in outcomes else Outcome(error=self._lost[row])
            for row in actions
        }

    def try_episode(self, row: dict[str, Any]) -> None:
        """Begins an episode of a row, takes an empty turn in it and ends it, before any work is
        done; UserError where `reset` or `step` returns what no episode can go on with.

        What they raise is left to the run, where it costs a row alone: it may be the fault of this
        row, or of the turn.
        """
        self._is_tried = True
        (outcome,) = self.reset([row], [0])
        if not outcome.is_last:
            outcome = self.step({0: ""})[0]
        self.reset([], [])
        self._is_tried = False
        if outcome.nonsense:
            raise UserError(f"{self._key}: {self.name} was tried for one turn: {outcome.error}")

    def keep_sources(self, folder: Path) -> None:
        """Writes to `folder` the local modules that were imported; see `Scorer.keep_sources`."""
        if not folder.parent.is_dir():  # the run's was moved or deleted
            return
        self._kept = folder
        save(self.sources, folder)

    def close(self) -> None:
        """Ends the environments and their processes."""
        if self._kept is not None:
            self.keep_sources(self._kept)
        for part in self._parts:
            part.close()

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self, plan: Plan) -> list[WorkerRows]:
        assert plan.spec is not None
        given = plan.spec, plan.arguments, self._settings.timeout, self.sources
        parts = [WorkerRows(*given) for _ in range(self._settings.workers)]
        try:
            for reply in [part.start() for part in parts]:
                if "error" in (found := reply.result()):
                    raise UserError(f"{plan.key}: cannot make {plan.name}: {found['error']}")
        except BaseException:
            for part in parts:
                part.close()
            raise
        return parts

    def _outcomes(self, calls: list[Call], fresh: bool = False) -> dict[int, Outcome]:
        """The outcomes of calls by their rows, of all parts at once."""
        count = len(self._parts)
        shares = [[x for x in calls if x["row"] % count == i] for i in range(count)]
        pending = [
            (share, part.submit(share, fresh))
            for share, part in zip(shares, self._parts)
            if share or fresh
        ]
        found = {}
        for share, results in pending:
            for call, result in zip(share, results.result()):
                if "seed" in call and result.get("observation") == "":
                    result = {**result, "observation": self._prompts[call["row"]]}
                found[call["row"]] = self._outcome(call["row"], result)
        return found

    def _outcome(self, row: int, result: Result) -> Outcome:
        options = self._options[row]
        try:
            if "error" in result:
                raise UserError(result["error"])
            if "tools" in result:
                options = self._options[row] = {**options, "tools": result["tools"]}
            observation = text_or_messages(result["observation"], "its observation")
            if observation is None:
                raise UserError("reset gave no observation, and the row has no prompt")
        except UserError as error:
            self._lost[row] = str(error)
            self._warn_once(str(error))
            nonsense = "error" not in result or "nonsense" in result
            return Outcome(error=str(error), nonsense=nonsense)
        tools, rest = options.get("tools"), {k: x for k, x in options.items() if k != "tools"}
        names = ("reward", "terminated", "truncated", "info")
        kept = {name: result[name] for name in names}
        if kept["terminated"] or kept["truncated"]:
            self._lost[row] = "its episode has ended"
        return Outcome(observation, tools=tools, template_kwargs=rest, **kept)

    def _warn_once(self, text: str) -> None:
        """Logs what a row was lost for, unless it was logged before."""
        if not self._is_tried and text not in self._said and len(self._said) < MAX_WARNINGS:
            self._said.add(text)
            last = "; no more is said of it" if len(self._said) == MAX_WARNINGS else ""
            logger.warning(
                "environment %s: %s, which costs the row (said once%s)", self.name, text, last
            )


def _plain(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The row as JSON has it: an environment gets the same wherever it lives."""
    try:
        return json.loads(json.dumps(row, default=plain))
    except TypeError as error:
        raise UserError(
            f"environment.path: {name} gets the rows of the data, and one of them holds {error}; "
            "only text, numbers, dates, lists and dicts of these can be passed. Convert the column."
        ) from None
