"""Settings of the `environment` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lmpg.settings.section import Section

OURS = "lmpg.language.worlds."
"""Environments and tools of built-in worlds: they need no processes of their own."""


class EnvironmentSettings(Section):
    """What the policy talks to over several turns: an environment of text, or tools."""

    path: str | None = None
    """An environment as `FILE.py:NAME`, `package.module:NAME`, the bare name of a built-in one, or
    an id of gymnasium whose spaces are Text; arguments in brackets, as in `my_env.py:Maze(size=4)`.
    Without it and without tools every response is a single turn."""
    tools: tuple[str, ...] = ()
    """Python functions that the policy may call, each as `FILE.py:NAME` or `package.module:NAME`;
    what they are for stands in their docstrings."""
    tool_format: Literal["auto", "hermes", "llama3", "mistral", "fenced"] = "auto"
    """How a call is written: hermes: JSON in <tool_call> tags; llama3: bare JSON; mistral: JSON
    behind [TOOL_CALLS]; fenced: a block of JSON, for models without one. auto: as the chat
    template has it."""
    max_turns: int = Field(8, ge=1)
    """Turns of the policy in an episode; one that has not ended by then is truncated."""
    max_tokens: int = Field(0, ge=0)
    """Tokens of a row, prompt and observations included; one that reaches them is truncated. A
    single turn has at most sampling.max_new_tokens. 0: as many as the model's context holds."""
    timeout: float = Field(60.0, gt=0)
    """Seconds one call of reset or step may take before its worker process is killed."""
    workers: int = Field(1, ge=1)
    """Processes that the environments of a rollout's rows are shared out to."""
    rewritten: Literal["refuse", "keep"] = "refuse"
    """What to do with a chat template that writes earlier turns anew, as those do that drop
    earlier thinking. keep: the policy goes on reading what it has sampled, as it is."""

    @property
    def wanted(self) -> bool:
        """Whether there are several turns at all."""
        return self.path is not None or bool(self.tools)

    @property
    def has_episodes(self) -> bool:
        """Whether there is an environment beside tools: its episodes begin with prompts, which data
        may lack then, and give rewards, which need no others."""
        return self.path is not None

    @property
    def is_built_in(self) -> bool:
        """Whether environment and tools, of which there are some, are those of a built-in world."""
        return self.wanted and all(x.startswith(OURS) for x in (self.path or OURS, *self.tools))

    @model_validator(mode="after")
    def _refuse_settings_without_an_environment(self) -> EnvironmentSettings:
        if self.wanted:
            return self
        for name in sorted(self.model_fields_set):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"environment.{name} = {getattr(self, name)} has no effect without "
                    "environment.path and environment.tools. Set one of these, or leave it out"
                )
        return self
