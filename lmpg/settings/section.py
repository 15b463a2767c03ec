"""Base class of settings sections and algorithms, and the errors that users see."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all settings: immutable, validated, finite, no extra keys; descriptions become
    --help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class UserError(ValueError):
    """Bad input from the user: names the key, the value, what was expected, and the fix.

    The command line prints its message without a traceback and exits with 2.
    """


class RunStopped(UserError):
    """The run can't go on, but nothing before this iteration is lost: it was saved."""


class Diverged(RunStopped):
    """Nothing can be learned any more: the weights are ruined, as far as anyone can tell, and not
    worth saving."""
