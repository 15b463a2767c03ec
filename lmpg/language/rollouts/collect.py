"""The source of rollouts for language models: prompts → responses → scores → Rollout."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from lmpg.language.data.order import other_prompts, prompts_for_step
from lmpg.language.data.prompts import Prompt
from lmpg.language.models.policy import Reference
from lmpg.language.rewards.scorer import Scorer
from lmpg.language.rollouts.assembly import SHOWN, Batch, Greedy, Recorded, Recorder
from lmpg.language.rollouts.dynamic_sampling import Filling, Rounds, filled
from lmpg.language.rollouts.evaluation import HeldOut
from lmpg.language.rollouts.generation import Key, Responder, scored_responses
from lmpg.language.rollouts.metrics import reward_metrics, rollout_metrics
from lmpg.language.rollouts.score_processing import Shaping
from lmpg.runtime.processes import Processes
from lmpg.runtime.stopwatch import Stopwatch
from lmpg.settings.section import RunStopped
from lmpg.training.source import Collected
from lmpg.types import Algorithm, Rollout

logger = logging.getLogger(__name__)


@dataclass
class LanguageSource:
    """Prompts, sampler, rewards and reference of one run; see `lmpg.training.online.Source`.

    shaping: has seen the scores of all steps so far. max_refills: see `sampling.max_refills`.
    sampled_will_do: see `lmpg.training.update.Updater.old_is_new`.
    """

    responder: Responder
    reference: Reference | None
    scorer: Scorer
    shaping: Shaping
    prompts: list[Prompt]
    held_out: HeldOut
    algorithm: Algorithm
    rollout_size: int
    max_error_share: float
    samples_every: int
    chunks: int = 1
    max_refills: int = 0
    sampled_will_do: bool = False
    begun: bool = False
    idle_told: bool = False
    headline: str = "reward"
    lower_is_better: bool = False
    unit: str = "tokens"

    def collect(self, step: int) -> Collected:
        """Sample and score, shape, record; RunStopped if too few responses have a score."""
        self.begun = True
        watch, group_size = Stopwatch(), self.algorithm.group_size
        draw = partial(self._sampled_and_scored, watch, step, [])
        rounds = Rounds(step, group_size, self.max_error_share, self.shaping, self.processes, draw)
        filling = filled(self.rollout_size // group_size, self.max_refills, rounds.sample)
        with watch("time/reference"):
            recorded = self._recorded(rounds, filling)
        self.shaping = rounds.shaping
        metrics = self._metrics(rounds, filling, recorded) | watch.seconds
        due = self.samples_every and (step == 1 or step % self.samples_every == 0)
        return Collected(recorded.rollout, metrics, recorded.shown[:SHOWN] if due else [])

    def evaluate(self) -> dict[str, float]:
        """Figures of responses to held-out prompts; see `lmpg.language.rollouts.evaluation`.

        RunStopped before anything was learned, where too few of them have a score.
        """
        found, size = self.held_out.evaluate(), self.held_out.size
        errors = int(found.get("reward_errors", 0))
        if not self.begun and errors > self.max_error_share * size:
            said = "\n  ".join(self.held_out.messages[:5])
            raise RunStopped(
                f"before training: {errors} of {size} held-out responses could not be scored, more "
                f"than rewards.max_error_share = {self.max_error_share} allows. Mend the reward "
                f"and start again. The reward said:\n  {said}"
            )
        return found

    def state(self) -> dict[str, Any]:
        """Statistics of scores; prompts and random numbers follow from the seed and the step."""
        return self.shaping.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        self.shaping = self.shaping.with_state(state)

    @property
    def processes(self) -> Processes:
        """Those that share the sampling."""
        return self.responder.processes

    def _sampled_and_scored(
        self, watch: Stopwatch, step: int, used: list[int], number: int, count: int
    ) -> list[Batch]:
        """This rank's share of round `number` of a step: `count` groups, none for prompts in `used`
        as far as there are others."""
        order = self._order(step, used, number, count)
        used += order
        share = self.processes.share_of(count)
        if not share:
            return []
        mine = [order[group] for group in share]
        key: Key = ("sample", step, "refill", number) if number else ("sample", step)
        group_size = self.algorithm.group_size
        uniforms_BT = self.responder.uniforms(key, count, group_size)
        prompts = [self.prompts[i] for i in mine]
        responses, scores = scored_responses(
            self.responder, self.scorer, prompts, group_size, uniforms_BT, self.chunks, watch
        )
        places = [(number, group) for group in share]
        return [Batch(places, responses, scores, self._greedy(mine, watch))]

    def _order(self, step: int, used: list[int], number: int, count: int) -> list[int]:
        """The prompts of all ranks in a round."""
        known, seed = len(self.prompts), self.responder.seed
        if number == 0:
            return prompts_for_step(known, step - 1, count, seed)
        return other_prompts(known, step - 1, used, count, seed)

    def _greedy(self, mine: list[int], watch: Stopwatch) -> Greedy | None:
        """Scored greedy responses to these prompts, for an algorithm that compares with them."""
        if "greedy" not in self.algorithm.needs:
            return None
        distinct = {i: number for number, i in enumerate(dict.fromkeys(mine))}
        with watch("time/sample"):
            responses = self.responder.respond([self.prompts[i] for i in distinct], 1, None)
        with watch("time/score"):
            scores = responses.scored_by(self.scorer)
        return Greedy(responses, scores, [distinct[i] for i in mine])

    def _recorded(self, rounds: Rounds, filling: Filling) -> Recorded:
        """The rows of all ranks, on every rank, in an order that doesn't depend on their number."""
        recorder = Recorder(self.responder, self.reference, self.algorithm, self.sampled_will_do)
        place_of = {place: number for number, place in enumerate(filling.places)}
        found = [recorder.recorded(batch, rounds.shaping, place_of) for batch in rounds.batches]
        mine = [part for part in found if part is not None]
        return Recorded.in_order(self.processes.gather_list(mine))

    def _metrics(self, rounds: Rounds, filling: Filling, recorded: Recorded) -> dict[str, float]:
        found = rollout_metrics(
            recorded.rollout,
            recorded.raw,
            recorded.finished,
            shaped=self.shaping.changes_scores,
        )
        found |= reward_metrics(rounds.scores, rounds.greedy_errors)
        if self.algorithm.group_size > 1:
            found["frac_reward_zero_std"] = filling.without_spread
        self._tell_if_idle(recorded.rollout, filling)
        return found | (filling.metrics() if self.max_refills else {})

    def _tell_if_idle(self, rollout: Rollout, filling: Filling) -> None:
        """Once: a step that nothing can be learned from looks like any other in the log."""
        why = None
        if not rollout.counted_BT.any():
            why = "no response counts: all are without a score or masked (rewards.truncated)"
        elif self.algorithm.group_size > 1 and filling.without_spread == 1:
            why = "the responses of each group have the same score, so none is better than another"
        if why and not self.idle_told and self.processes.is_main:
            self.idle_told = True
            logger.warning("nothing can be learned from this step: %s (said once)", why)
