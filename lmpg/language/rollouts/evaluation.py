"""Held-out evaluation of a language model: what it writes, and what is thought of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lmpg.language.data.prompts import Prompt
from lmpg.language.models.policy import Reference
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rollouts.generation import Responder
from lmpg.language.rollouts.metrics import mean, score_statistics

# (prompts, completions) → figures that training never sees, such as a gold scorer's.
Judge = Callable[[list[Prompt], list[str]], dict[str, float]]


@dataclass(frozen=True)
class HeldOut:
    """Sampled responses to `size` held-out prompts (repeated where there are fewer), the same
    random numbers each time, at most `rows` at once; scorer, reference and judge where there are.

    messages: what the rewards said of responses without a score, the last time.
    """

    responder: Responder
    prompts: list[Prompt]
    size: int
    rows: int
    scorer: Scorer | None = None
    reference: Reference | None = None
    judge: Judge | None = None
    messages: list[str] = field(default_factory=list)

    def evaluate(self) -> dict[str, float]:
        """reward, reward_std: mean and std of the score. reward_errors: responses without one, if
        there are any. distinct: share of distinct responses.
        length: mean tokens. kl: mean nats per response to the reference. And what the judge adds.
        """
        asked = [self.prompts[i % len(self.prompts)] for i in range(self.size)]
        uniforms_BT = self.responder.uniforms(("evaluate",), self.size, 1)
        totals: list[float | None] = []
        said: list[str] = []
        completions: list[str] = []
        lengths: list[float] = []
        kls: list[float] = []
        mine = self.responder.processes.share(asked)
        for start in range(0, len(mine), self.rows):
            prompts = mine[start : start + self.rows]
            rows = uniforms_BT[start : start + len(prompts)]
            responses = self.responder.respond(prompts, 1, rows)
            completions += responses.completions
            lengths += map(len, responses.ids)
            if self.scorer is not None:
                scores = responses.scored_by(self.scorer)
                totals += scores.totals
                said += scores.messages
            if self.reference is not None:
                kls += self.responder.sequence_kl(self.reference, responses.samples).tolist()
        gather = self.responder.processes.gather_list
        completions = gather(completions)
        totals = gather(totals)
        self.messages[:] = gather(said)
        found = {} if self.scorer is None else score_statistics(totals)
        if None in totals:
            found["reward_errors"] = float(totals.count(None))
        found["distinct"] = len(set(completions)) / len(completions)
        found["length"] = mean(gather(lengths))
        if self.reference is not None:
            found["kl"] = mean(gather(kls))
        return found | (self.judge(asked, completions) if self.judge else {})
