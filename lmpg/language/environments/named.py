"""Environments and tools by the names that settings have for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lmpg.language.data.call_syntax import parsed_call
from lmpg.language.environments.settings import EnvironmentSettings
from lmpg.language.rewards.specs import Spec, spec_of
from lmpg.settings.raw import IN_MEMORY
from lmpg.settings.section import UserError

KEY, TOOLS_KEY = "environment.path", "environment.tools"
_ADAPTERS = "lmpg.language.environments.adapters"
GYMNASIUM = f"{_ADAPTERS}.gymnasium_text:GymnasiumText"
BUILTIN: dict[str, str] = {
    "gymnasium": GYMNASIUM,
    "openenv": f"{_ADAPTERS}.openenv_session:OpenEnvSession",
    "reasoning_gym": f"{_ADAPTERS}.reasoning_attempts:ReasoningAttempts",
    "textarena": f"{_ADAPTERS}.textarena_games:TextArena",
    "verifiers": f"{_ADAPTERS}.verifiers_rollout:VerifiersRollout",
}


def environment_spec(text: str) -> Spec:
    """The spec of an environment; an id of gymnasium's becomes its adapter with that id."""
    if not _is_gymnasium_id(text):
        return spec_of(text, KEY, "environment", BUILTIN)
    head, bracket, rest = text.strip().partition("(")
    _, arguments = parsed_call(f"environment{bracket}{rest}", KEY)
    return Spec(text, GYMNASIUM, head, head, True, {"id": head, **arguments})


def tool_spec(text: str) -> Spec:
    """The spec of a tool; a tool's arguments are the policy's to give."""
    spec = spec_of(text, TOOLS_KEY, "tool", {})
    if spec.arguments:
        raise UserError(
            f"{TOOLS_KEY}: {text!r} sets {next(iter(spec.arguments))}, but the arguments of a tool "
            "come with its calls; give a function without it."
        )
    return spec


def specs_of(settings: EnvironmentSettings, given: Mapping[str, object]) -> dict[str, Spec]:
    """Specs of the environment and the tools by their texts, without those given as objects."""
    found = {}
    if settings.path is not None and settings.path not in given:
        found[settings.path] = environment_spec(settings.path)
    return found | {text: tool_spec(text) for text in settings.tools if text not in given}


def source_of(spec: Spec) -> str | None:
    """The file or module that a spec comes from, None where that is lmpg or gymnasium."""
    if not spec.is_builtin:
        return spec.function.rpartition(":")[0]
    module = str(spec.arguments.get("id", "")).rpartition(":")[0]
    return module if spec.function == GYMNASIUM and module else None


def _is_gymnasium_id(text: str) -> bool:
    """Whether it is an id such as Maze-v0 or mine:own/Maze-v0, rather than a name of Python's."""
    head = text.strip().partition("(")[0]
    source, _, name = head.rpartition(":")
    if head.startswith(IN_MEMORY) or source.endswith(".py") or Path(head).suffix == ".py":
        return False
    return bool(name) and not name.isidentifier()
