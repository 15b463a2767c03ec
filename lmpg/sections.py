"""What every settings section and algorithm shares: frozen fields, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all settings: immutable, validated, no extra keys; descriptions become --help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
