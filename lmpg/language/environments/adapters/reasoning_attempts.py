"""Tasks of reasoning-gym, answered in several attempts."""

from __future__ import annotations

from typing import Any

from lmpg.language.rewards.builtin import reasoning_task, tagged

RIGHT = 1.0


class ReasoningAttempts:
    """A question and up to `attempts` answers, each scored by the task's own `score_answer`.

    The question is that of the data's row (`--data.path reasoning_gym:TASK`), or with `task` the
    one that the seed picks of it; `arguments` are the task's. The episode ends with a right answer
    or the last attempt; its reward is the score of that answer, less `cost` for each one before.
    """

    def __init__(
        self, attempts: int = 3, cost: float = 0.0, task: str | None = None, **arguments: Any
    ):
        if attempts < 1:
            raise ValueError(f"attempts = {attempts}, expected at least 1")
        if arguments and task is None:
            raise ValueError(f"{next(iter(arguments))} is given, but no task that it is for")
        self._attempts, self._cost, self._left = attempts, cost, attempts
        self._name, self._arguments = task, {"seed": 0, "size": 500, **arguments}

    def reset(self, *, seed: int, options: dict[str, Any]) -> Any:
        """The question."""
        self._left = self._attempts
        item: Any = options.get("reasoning_gym")
        if item is None and self._name is None:
            raise ValueError(
                "the row has no column reasoning_gym; take --data.path reasoning_gym:TASK, or name "
                "a task: reasoning_gym(task='...')"
            )
        if self._name is not None:
            index = seed % self._arguments["size"]
            item = {"task": self._name, "arguments": self._arguments, "index": index}
        self._task = reasoning_task(item["task"], item["arguments"])
        self._entry = self._task[item["index"]]
        prompt = options.get("prompt") if self._name is None else None
        return prompt or self._entry["question"], {"state": self._entry["question"]}

    def step(self, action: str) -> Any:
        """Whether the answer, in <answer> tags or all of the turn, is right."""
        score = float(self._task.score_answer(tagged(action), entry=self._entry))
        self._left -= 1
        info = {"score": score, "attempts_left": self._left}
        if score >= RIGHT or not self._left:
            reward = score - self._cost * (self._attempts - self._left - 1)
            return "", reward, True, False, info
        more = f"{self._left} attempt{'s' if self._left > 1 else ''} left"
        return f"That is not right. Try again: {more}.", 0.0, False, False, info
