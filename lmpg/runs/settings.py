"""Settings of the `evaluation` and `run` sections."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lmpg.settings.section import Section

MOST_THREADS = 1024
"""No machine gains by more, and the system ends a process that asks for far too many."""

Sharding = Literal["auto", "none", "full", "hybrid"]
"""How models are spread over processes."""

Tracking = Literal[
    "aim", "clearml", "comet_ml", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
"""accelerate's trackers."""


class EvaluationSettings(Section):
    """Held-out evaluation, before and after training and in between."""

    every: int = Field(0, ge=0)
    """Iterations between evaluations; 0 evaluates only before and after. Keeps `best/`."""
    size: int = Field(256, ge=1)
    """Responses per evaluation (gym: episodes)."""


class GymEvaluationSettings(EvaluationSettings):
    """Evaluation in separate environments, before and after training and in between."""

    actions: Literal["deterministic", "sampled"] = "deterministic"
    """The most likely action in each state, or one drawn from the policy as in training."""


class LanguageEvaluationSettings(EvaluationSettings):
    """Held-out evaluation of a language model trained on its own responses."""

    size: int = Field(256, ge=1)
    """Prompts per evaluation, each answered `samples` times; where fewer are held out, they are
    asked again."""
    samples: int = Field(1, ge=1)
    """Responses to each prompt; from 2 on pass@k is reported, the chance that one of k passes, for
    k = 1, 2, 4 … up to this."""
    pass_score: float = 1.0
    """A response whose score is at least this passes, for pass@k."""
    greedy: bool = False
    """Score the likeliest response to each prompt, too (greedy decoding): greedy_reward."""
    kl: bool | None = None
    """Measure the KL to the reference: the policy that training started from, unless
    model.reference or model.teacher names another. none: where it is in memory anyway, or small
    (50 million weights); True keeps a copy for this alone."""


class OfflineEvaluationSettings(Section):
    """Held-out evaluation, before and after training and in between."""

    every: int = Field(0, ge=0)
    """Optimizer steps between evaluations; 0 evaluates only before and after. Keeps `best/`."""


class SampledEvaluationSettings(OfflineEvaluationSettings):
    """Held-out evaluation, before and after training and in between."""

    size: int = Field(0, ge=0)
    """Responses to held-out prompts that are sampled per evaluation; 0 samples none."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest of these, in tokens."""


class AnyRunSettings(Section):
    """What every run has, whatever its length is counted in."""

    output_dir: str | None = None
    """Folder for everything the run writes; none makes a fresh runs/NAME-TIME."""
    seed: int = 0
    """Seed of the training; a built-in world has a fixed seed of its own."""
    save_every: int = Field(25, ge=0)
    """Iterations between checkpoints; 0 saves only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept; older ones are deleted."""
    resume: bool = False
    """Go on from the newest whole checkpoint in output_dir, or start there if there is none."""
    resume_anyway: bool = False
    """The same, even if data, rewards or models have changed since the run began: warns of them."""
    trackers: tuple[Tracking, ...] = ()
    """Experiment trackers that show metrics, settings and samples, beside metrics.jsonl; each is a
    package of its own."""
    project: str = Field("lmpg", min_length=1)
    """The project, or experiment, that trackers put the run into."""
    name: str | None = Field(None, min_length=1)
    """What trackers call the run; none: as its folder."""
    report_every: int = Field(1, ge=0)
    """Iterations between writings of report.html while the run goes on, or more where these would
    take over half a percent of the time; 0 writes it at the end alone."""
    torch_threads: int = Field(0, ge=0, le=MOST_THREADS)
    """CPU threads of torch and numpy, fixed for the whole run: results depend on their number.
    0: OMP_NUM_THREADS where it is set, else 1 for small models and environments, else torch's
    choice; a resumed run has as many as before."""

    @field_validator("output_dir")
    @classmethod
    def _find_home(cls, value: str | None) -> str | None:
        return None if value is None else os.path.expanduser(value)

    @model_validator(mode="after")
    def _require_the_folder_of_a_resumed_run(self) -> AnyRunSettings:
        if (self.resume or self.resume_anyway) and self.output_dir is None:
            raise ValueError(
                "run.resume is given, but run.output_dir is not: expected the folder of the run to "
                "go on with, such as --run.output-dir runs/ppo-20250131-120000"
            )
        return self


class RunSettings(AnyRunSettings):
    """The run as a whole."""

    total_steps: int = Field(100, ge=1)
    """Iterations of rollout and update."""
    push_to_hub: str | None = None
    """Repository on the Hub that `final/` is uploaded to at the end; a new one is private."""
    sharding: Sharding = "auto"
    """How several processes hold what is trained and its reference. none: each a whole copy; full:
    each a part of every weight, gradient and optimizer state (FSDP2); hybrid: so within each
    machine, and machines hold copies; auto: as an accelerate launch says, else none."""
    rank_timeout: float = Field(600.0, ge=5, le=7200)
    """Seconds that the processes of a run wait for one that gives no sign of life, or does not come
    to where they exchange something; then all end, and the run can be resumed."""
    samples_every: int = Field(10, ge=0)
    """Iterations between the prompts and completions written to samples.jsonl; 0 writes none."""
    token_view: bool = True
    """About 16 times in a run, samples.jsonl gets numbers of each token too, which the report shows
    in colour: advantage, value, KL to the reference, entropy, ratio."""


class OfflineRunSettings(AnyRunSettings):
    """The run as a whole; it ends with the last epoch, or sooner after `total_steps`."""

    total_steps: int = Field(1_000_000_000, ge=1)
    """Optimizer steps at most."""
    push_to_hub: str | None = None
    """Repository on the Hub that `final/` is uploaded to at the end; a new one is private."""
    sharding: Sharding = "auto"
    """How several processes hold what is trained and its reference. none: each a whole copy; full:
    each a part of every weight, gradient and optimizer state (FSDP2); hybrid: so within each
    machine, and machines hold copies; auto: as an accelerate launch says, else none."""
    rank_timeout: float = Field(600.0, ge=5, le=7200)
    """Seconds that the processes of a run wait for one that gives no sign of life, or does not come
    to where they exchange something; then all end, and the run can be resumed."""
    save_every: int = Field(100, ge=0)
    """Optimizer steps between checkpoints; 0 saves only at the end."""


class PreferenceRunSettings(OfflineRunSettings):
    """The run as a whole; it ends with the last epoch, or sooner after `total_steps`."""

    token_view: bool = True
    """Before training, after it and about 16 times in between, the held-out answers of
    samples.jsonl get numbers of each token too, which the report shows in colour: log π, and by how
    much it is above the reference's."""


class GymRunSettings(AnyRunSettings):
    """The run as a whole; its length is counted in environment steps."""

    total_timesteps: int = Field(100_000, ge=1)
    """Environment steps to learn from, exactly: the last rollout is shortened where needed."""
    max_iterations: int = Field(0, ge=0)
    """Ends the run after so many rollouts; 0 does not."""
    max_episodes: int = Field(0, ge=0)
    """Ends the run with the rollout in which so many episodes have ended; 0 does not."""
    target_return: float | None = None
    """Ends the run once the mean return of the last 100 training episodes is at least this."""
