"""Base class of settings sections and algorithms, and the errors that users see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Base of all settings: immutable, validated, finite, no extra keys; descriptions become
    --help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_what_only_looks_like_a_value(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty text, as of a shell's variable that is not set, and True where 1 would count."""
        if value == "":
            raise ValueError("expected something; leave the setting out for its default")
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {kind, *get_args(kind)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("expected a number")
        return value


class UserError(ValueError):
    """Bad input from the user: names the key, the value, what was expected, and the fix.

    The command line prints its message without a traceback and exits with 2.
    """


@contextmanager
def beginning_with(where: str) -> Iterator[None]:
    """A block whose UserError begins with the place in the user's data that it is about."""
    try:
        yield
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(where) else f"{where}: {said}") from None


class Problems(list[str]):
    """What is wrong with the user's input, gathered so that all of it is told at once."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Takes up the UserError that ends the block."""
        try:
            yield
        except UserError as error:
            self.append(str(error))

    def refuse(self) -> None:
        """UserError with a line for each problem, if there are any."""
        if self:
            raise UserError("\n".join(dict.fromkeys(self)))


class RunStopped(UserError):
    """The run can't go on, but nothing before this iteration is lost: it was saved."""


class Diverged(RunStopped):
    """Nothing can be learned any more: the weights are ruined, as far as anyone can tell, and not
    worth saving."""
