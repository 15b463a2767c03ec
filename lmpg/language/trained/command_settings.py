"""Settings of `lmpg evaluate`, `lmpg generate` and `lmpg chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from lmpg.language.data.settings import DataSettings
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.models.settings import LoadingSettings
from lmpg.language.rewards.settings import ScoringSettings
from lmpg.language.sampling.settings import DecodingSettings
from lmpg.runs.settings import MOST_THREADS
from lmpg.settings.section import Section


class ChatFormatSettings(Section):
    """How the chat is written; without these settings as the run was trained."""

    system_prompt: str | None = None
    """System message in front of the chat."""
    chat_template: str | None = None
    """File with a chat template (Jinja) to use in place of the tokenizer's."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as '{enable_thinking: false}'."""


class AskingSettings(Section):
    """A model that is asked, and how it answers."""

    model: LoadingSettings = LoadingSettings()
    sampling: DecodingSettings = DecodingSettings()
    seed: int = 0
    """Seed of the sampling: the same one gives the same responses. A run's model has the run's."""
    torch_threads: int = Field(0, ge=0, le=MOST_THREADS)
    """CPU threads of torch and numpy; 0: OMP_NUM_THREADS where it is set, else 1 for small models,
    else torch's choice."""

    @model_validator(mode="after")
    def _require_a_model(self) -> AskingSettings:
        if self.model.path is None:
            raise ValueError(
                "model.path is not set, expected the folder of a run or of a model, or a Hub id: "
                "give --model.path"
            )
        return self


class MeasuringSettings(AskingSettings):
    """A model whose responses are scored."""

    data: DataSettings = DataSettings()
    rewards: ScoringSettings = ScoringSettings()
    size: int = Field(0, ge=0)
    """Prompts at most, the same ones each time; 0 takes all. Of an environment without data so many
    episodes, 64 for 0."""
    held_out: bool | None = None
    """Take the rows that training holds back of data.path, not all of them. none: where the data
    are those of the run that model.path names, or where data.eval_path or data.eval_split is
    given."""

    @property
    def has_episodes(self) -> bool:
        """See `EnvironmentSettings.has_episodes`."""
        environment = getattr(self, "environment", None)
        return environment is not None and environment.has_episodes

    @model_validator(mode="after")
    def _require_data_and_a_reward(self) -> MeasuringSettings:
        data, rewards = self.data, self.rewards
        if data.path is None and not self.has_episodes:
            is_there = Path(self.model.path or "").expanduser().exists()
            raise ValueError(
                f"data.path is not set and {self.model.path} is no "
                f"{'run' if is_there else 'folder here'} whose data could be taken, "
                "expected a Hub name or a local file: give --data.path"
            )
        in_world = str(data.path).startswith("world:")
        if not (rewards.functions or rewards.models or in_world or self.has_episodes):
            raise ValueError(
                "no reward is given, expected one that scores the responses: give "
                "--rewards.functions FILE.py:NAME, --rewards.models PATH, or both"
            )
        return self


class EvaluateSettings(MeasuringSettings):
    """Measure a model on held-out prompts: mean score, pass@k, greedy decoding, lengths."""

    environment: EnvironmentSettings = EnvironmentSettings()
    samples: int = Field(1, ge=1)
    """Responses to each prompt; pass@k is reported for k = 1 … this."""
    pass_score: float = 1.0
    """A response whose score is at least this passes, for pass@k."""
    greedy: bool = True
    """Score the likeliest response to each prompt, too (greedy decoding)."""
    compare: str | None = None
    """A second model, as model.path, which answers the same prompts with the same random numbers:
    differences are paired. `start` is the model that the run at model.path began with."""
    batch_size: int = Field(64, ge=1)
    """Responses sampled at once on each process: memory, never the result."""
    show: int = Field(3, ge=0)
    """Prompts whose responses are shown in the table of samples."""
    output: str | None = None
    """JSON file for all that was measured, every response included; none makes a fresh
    evaluations/NAME-TIME.json."""


GIVEN = "-"
"""Of data.path: the prompts that stand on the command line, or the lines of standard input."""


class GenerateSettings(AskingSettings):
    """Let a model answer prompts: the words before the flags, else the rows of --data.path, else
    the lines of standard input."""

    data: DataSettings = DataSettings(path=GIVEN)
    samples: int = Field(1, ge=1)
    """Responses to each prompt."""
    greedy: bool = False
    """Always take the likeliest token."""
    show_special: bool = False
    """Show what the model reads and writes with all special tokens."""
    jsonl: bool = False
    """Print a JSON object a line for each response, with its prompt, length and whether it ended
    by itself."""
    batch_size: int = Field(64, ge=1)
    """Responses sampled at once: memory, never the result."""


class ChatSettings(AskingSettings):
    """Talk with a model."""

    data: ChatFormatSettings = ChatFormatSettings()
    greedy: bool = False
    """Always take the likeliest token."""
    show_special: bool = False
    """Show what the model reads and writes with all special tokens; /special switches it."""
