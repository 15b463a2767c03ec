"""The source of rollouts for gymnasium agents; see `lmpg.training.source.Source`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

from lmpg.gym.environments.agent import Agent
from lmpg.gym.environments.episodes import play
from lmpg.gym.environments.make import make_envs
from lmpg.gym.environments.normalisation import Normaliser
from lmpg.gym.environments.runner import RECENT_EPISODES, Runner
from lmpg.gym.environments.settings import EnvSettings
from lmpg.gym.networks.mlp_policy import MLPPolicy
from lmpg.gym.networks.settings import PolicySettings
from lmpg.runs.settings import GymEvaluationSettings, GymRunSettings
from lmpg.runtime.machine import Stopwatch
from lmpg.runtime.seeding import generator
from lmpg.training.settings import AnyUpdateSettings, BatchSettings
from lmpg.training.source import Collected

_log = logging.getLogger(__name__)


class Learner(Protocol):
    """An algorithm or a textbook method."""

    @property
    def needs(self) -> frozenset[str]:
        """`critic` where the policy must have one."""
        ...


@dataclass
class GymSource:
    """Collects rollouts in environments that run on from one to the next; evaluates in others."""

    policy: MLPPolicy
    runner: Runner
    env: EnvSettings
    update: AnyUpdateSettings | BatchSettings
    evaluation: GymEvaluationSettings
    run: GymRunSettings
    best_metric: str = "return_mean"
    lower_is_better: bool = False
    step_name: str = "steps"
    advice: str = "or look for inf and NaN in what the environment shows and pays"

    def collect(self, step: int) -> Collected:
        """Collect until `step` rollouts' worth of environment steps, the last to the exact total.

        A rollout before the last one is cut to the exact number too where its surplus could leave
        nothing for the last.
        """
        total = self.run.total_timesteps
        until = min(step * self.update.rollout_size, total)
        exact = until + self.runner.num_envs > total
        watch = Stopwatch()
        with watch("time/sample"):
            rollout = self.runner.collect(
                self.policy, until, generator(self.run.seed, "act", step), exact
            )
        return Collected(rollout, self.runner.metrics() | watch.seconds)

    def evaluate(self) -> dict[str, float]:
        """In separate environments, always from the same starts.

        return_mean, return_std (over the episodes, biased), length_mean.
        """
        sampled = self.evaluation.actions == "sampled"
        drawn = generator(self.run.seed, "evaluate", self.runner.num_steps) if sampled else None
        seed = env_seed(self.run.seed, "evaluate")
        episodes = play(self.agent, self.env, self.evaluation.size, seed, drawn)
        return {
            "return_mean": float(episodes.returns.mean()),
            "return_std": float(episodes.returns.std()),
            "length_mean": float(episodes.lengths.mean()),
        }

    @property
    def agent(self) -> Agent:
        """The policy as it is now, with the statistics of its observations."""
        return Agent(self.policy, self.runner.normaliser.frozen())

    def stop_reason(self, step: int) -> str | None:
        """Which of the run's own limits is reached after `step` rollouts; None: it goes on."""
        run, runner = self.run, self.runner
        if run.max_iterations and step >= run.max_iterations:
            return f"run.max_iterations = {run.max_iterations}"
        if run.max_episodes and runner.num_episodes >= run.max_episodes:
            return f"run.max_episodes = {run.max_episodes}"
        if run.target_return is None or len(runner.episodes) < RECENT_EPISODES:
            return None
        mean = runner.metrics()["episode/return_mean"]
        return f"run.target_return = {run.target_return}" if mean >= run.target_return else None

    def state(self) -> dict[str, Any]:
        """The environments and their unfinished episodes."""
        return self.runner.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on there; says so where an environment cannot be brought back bit for bit."""
        if not self.runner.load_state(state):
            _log.warning(
                "resume is not exact: %s could not be put back where it was, so its episodes "
                "start anew; everything else goes on as it was saved",
                self.env.id,
            )
        if self.runner.num_uncounted:
            _log.warning(
                "the shorter run took %d steps at its end that it did not count; a run that is "
                "this long from its start would have learned from them, so it is another one",
                self.runner.num_uncounted,
            )


def make_source(
    env: EnvSettings,
    policy: PolicySettings,
    algorithm: Learner,
    update: AnyUpdateSettings | BatchSettings,
    evaluation: GymEvaluationSettings,
    run: GymRunSettings,
) -> GymSource:
    """Environments and a fresh policy for them, all drawn from `run.seed`."""
    envs = make_envs(env, env.num_envs)
    runner = Runner(envs, env.id, env_seed(run.seed, "environments"), policy.squash)
    runner.normaliser = Normaliser.for_run(
        env.normalise_observations,
        env.normalise_rewards,
        runner.observations.size,
        env.num_envs,
        getattr(algorithm, "gamma", 1.0),
    )
    critic = "critic" in algorithm.needs
    agent = MLPPolicy(runner.observations.size, runner.actions.spec, policy, critic)
    agent.initialise(generator(run.seed, "policy"))
    return GymSource(agent, runner, env, update, evaluation, run)


def num_iterations(run: GymRunSettings, update: AnyUpdateSettings | BatchSettings) -> int:
    """Rollouts until `run.total_timesteps`; the last one may be shorter."""
    return -(-run.total_timesteps // update.rollout_size)


def env_seed(*key: int | str) -> int:
    """A seed as environments take it."""
    return generator(*key).initial_seed() % 2**31
