"""Settings of the `data` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lmpg.settings.section import Section


class DataSettings(Section):
    """Where prompts, texts or preference pairs come from."""

    world: Literal["reviews", "addition", "guess", "calculator", "rooms"] = "reviews"
    """Built-in world that gives model, data and reward where `model.path` is not set."""
    path: str | None = None
    """Hub name (NAME or NAME:CONFIG), a local json, jsonl, csv or parquet file or folder, or
    `reasoning_gym:TASK`, a task of reasoning-gym; `world:NAME` trains your own model on the data
    of a built-in world."""
    eval_path: str | None = None
    """The same for held-out data; none holds back `num_eval` rows of `path`."""
    revision: str | None = None
    """Branch, tag or commit of `path` on the Hub; none is its main branch."""
    split: str = "train"
    """Split to read where the source has several."""
    eval_split: str | None = None
    """Split of the held-out data; none reads `split` of `eval_path`."""
    prompt_column: str | None = None
    """Column with the prompt, text or chat messages; none looks for `prompt`, which data for an
    environment may do without."""
    answer_column: str | None = None
    """Column that rewards get as `answer`, the reference; none leaves `answer` as it is."""
    completion_column: str = "completion"
    """Column with the answer to a prompt, for supervised training."""
    chosen_column: str = "chosen"
    """Column with the better answer of a pair, for reward models and DPO."""
    rejected_column: str = "rejected"
    """Column with the worse answer of a pair, for reward models and DPO."""
    margin_column: str = "margin"
    """Column with how much higher the better answer is to score, for reward models."""
    label_column: str = "label"
    """Column with a label: for reward models a number, where any higher beats any lower; for KTO
    true or false, or two numbers of which the higher one marks desirable answers."""
    overlong: Literal["error", "skip", "truncate-left"] = "error"
    """What to do with a prompt that leaves no room for the response in the model's context."""
    special_tokens: Literal["tokens", "text"] = "tokens"
    """What text of the data that spells a special token, such as `</s>`, becomes: the token itself,
    which ends a turn or opens one, or text like any other. What a chat template writes are tokens
    either way."""
    chat: bool = False
    """A prompt that is text becomes a chat, as its user's message: for models that were taught to
    chat."""
    system_prompt: str | None = None
    """System message in front of every chat that has none; makes chats of texts, as `chat` does."""
    chat_template: str | None = None
    """File with a chat template (Jinja) to use in place of the tokenizer's; `final/` keeps it."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as '{enable_thinking: false}'; those that a row has in a
    column of this name win."""
    num_eval: int = Field(256, ge=1)
    """Most held-out rows that evaluation uses."""

    @model_validator(mode="after")
    def _refuse_what_built_in_worlds_have_no_use_for(self) -> DataSettings:
        if self.path is not None and not self.path.startswith("world:"):
            return self
        for key in ("revision", "chat", "system_prompt", "chat_template", "chat_template_kwargs"):
            if value := getattr(self, key):
                raise ValueError(
                    f"data.{key} = {value}, but the data are those of a built-in world, whose "
                    f"texts are fixed. Give --data.path, or leave data.{key} out"
                )
        return self


class TextSettings(DataSettings):
    """Where texts come from, and how they lie in a batch."""

    packing: bool = False
    """Several texts in a row of up to the model's context; minibatches then count rows."""
