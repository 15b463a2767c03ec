"""What may differ when a run is resumed: its settings, by name, and where its inputs lie."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lmpg.settings.section import UserError

MAY_DIFFER = {  # the number of steps, saving and trackers; and what changes memory and time alone
    "run.total_steps",
    "run.total_timesteps",
    "run.save_every",
    "run.keep_checkpoints",
    "run.trackers",
    "run.project",
    "run.name",
    "run.token_view",
    "run.report_every",
    "run.rank_timeout",
    "run.push_to_hub",
    "run.sharding",
    "update.microbatch_size",
    "update.microbatch_tokens",
    "update.memory_share",
}
ADVISED = {  # what a run that stopped advises to change; said in the log, as the results change
    "update.learning_rate",
    "update.critic_learning_rate",
    "update.max_grad_norm",
    "algorithm.kl_target",
    "algorithm.penalty_target",
    "model.precision",
    "model.tf32",
    "rewards.timeout",
    "rewards.max_error_share",
}
COEFFICIENT = re.compile(r"algorithm\.\w+_coef")
STEERED = {  # a coefficient that is steered goes on with the value in the checkpoint
    "algorithm.kl_coef": "algorithm.kl_target",
    "algorithm.penalty_coef": "algorithm.penalty_target",
}
PLACES = {
    *("model.path", "model.tokenizer", "model.reference", "model.teacher", "rewards.models"),
    *("data.path", "data.eval_path", "data.chat_template"),
}
FOLDER_OF_CODE = re.compile(r"^.*/(?=[^/]*\.py:)")


def changes(
    old: dict[str, Any],
    new: dict[str, Any],
    path: Path,
    known_inputs: Collection[str],
    defaults: dict[str, Any],
) -> list[str]:
    """Lines about the settings that differ and may; UserError for those that may not.

    known_inputs: settings whose files the run has fingerprints of: these may lie elsewhere now.
    defaults: what settings of its sections were that the old run's version did not have yet.
    """
    before, now = flat(old), flat(new)
    for key, value in flat(defaults).items():
        if key in now and key.partition(".")[0] in old:
            before.setdefault(key, value)
    refused, told = [], []
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if a == b or key in MAY_DIFFER or _moved(key, a, b, known_inputs):
            continue
        if _advised(key, now):
            told.append(f"{key} is {b!r} from here on, it was {a!r}")
        else:
            refused.append(f"{key} = {b!r}, but the run in {path} has {a!r}")
    if refused:
        refused.append(
            "with --run.resume only the number of steps, saving, trackers and what a stopped run "
            "advises (learning rate, gradient norm, coefficients) may differ; give the same "
            "settings as before, or choose another --run.output-dir"
        )
        raise UserError("\n".join(refused))
    return told


def share_choices(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Give what a run chose for itself, the number of CPU threads and the precision, to settings
    that leave it open, from those that name it."""
    known = new["run"].get("torch_threads") or old["run"].get("torch_threads") or 0
    for values in (old, new):
        if not values["run"].get("torch_threads"):
            values["run"]["torch_threads"] = known
    if new.get("model", {}).get("precision") == "auto":
        new["model"]["precision"] = old.get("model", {}).get("precision", "auto")


def _moved(key: str, old: Any, new: Any, known_inputs: Collection[str]) -> bool:
    """Whether a setting names an input by another path; its fingerprint tells if it is the same."""
    if key not in known_inputs or not old or not new:
        return False
    if key in PLACES:
        return isinstance(old, str) or len(old) == len(new)
    return _names(old) == _names(new)


def _names(value: Any) -> Any:
    """Specs of functions (`FILE.py:NAME`) without the folders of their files."""
    return [FOLDER_OF_CODE.sub("", x) for x in value] if isinstance(value, list) else value


def _advised(key: str, now: dict[str, Any]) -> bool:
    coefficient = COEFFICIENT.fullmatch(key) and now.get(STEERED.get(key, "")) is None
    return key in ADVISED or bool(coefficient)


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
