"""A run's folder as a model: where its weights lie, and the settings that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from lmpg.language.suitable import own_reward
from lmpg.language.trained.command_settings import AskingSettings
from lmpg.language.worlds.registry import PREFIX, chosen_world
from lmpg.runs.files import whole_model
from lmpg.runs.folder import CONFIG, FINISHED, read_config, read_summary
from lmpg.settings.raw import IN_MEMORY, RawSettings, completed
from lmpg.settings.section import UserError

S = TypeVar("S", bound=AskingSettings)
START = "start"
"""What `compare` calls the model that a run began with."""
MODELS = ("final", "best")
_SOURCE = ("path", "eval_path", "revision", "split", "eval_split", "num_eval", "world")
_OWN = ("path", "revision", "tokenizer")
"""Of a run's section `model`: they say where it began, and final/ has its own tokenizer."""


def run_of(path: str | None) -> Path | None:
    """The folder of the run whose model `path` names: the run's own, or final/ or best/ in it; None
    where it names another model."""
    if path is None:
        return None
    folder = Path(path).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    inside = folder.name in MODELS and (folder.parent / CONFIG).is_file()
    return folder.parent if inside else None


def required_run(path: str) -> Path:
    """The folder of the run that `path` names; UserError where there is none."""
    folder = run_of(path)
    if folder is None:
        raise UserError(f"{path} holds no run, expected the folder of one")
    return folder


def model_folder(path: str, key: str = "model.path") -> str:
    """Where the model lies that `path` names: of a run in its final/, whole where it has an
    adapter."""
    run = run_of(path)
    if run is None:
        return path
    named = Path(path).expanduser()
    folder = named if named != run else run / "final"
    if not folder.is_dir():
        reason = read_summary(run).get("exit_reason", "it has not ended yet")
        best = f", or name {run / 'best'}" if (run / "best").is_dir() else ""
        why = "" if reason == FINISHED else f" ({reason})"
        raise UserError(
            f"{key} = {path} is a run without final/{why}, expected one that has finished: go on "
            f"with it by --run.output-dir {run} --run.resume{best}"
        )
    return str(whole_model(folder))


def start_of(path: str | None) -> RawSettings:
    """path, revision and tokenizer of the model that the run at `path` began with; UserError where
    it is no run."""
    run = run_of(path)
    if run is None:
        raise UserError(
            f"compare = {START} with model.path = {path}, which is no run's folder, expected one, "
            "whose first model is meant; name a model instead"
        )
    config = _config(run)
    began = config.get("model") or {}
    if began.get("path"):
        return {key: began.get(key) for key in _OWN}
    from lmpg.language.worlds.registry import WORLDS  # a world is slow to make

    return {"path": str(WORLDS[chosen_world(config)].build(None, False).model_path)}


def below(kind: type[AskingSettings], given: RawSettings) -> RawSettings:
    """The settings that those `given` override: of the run, where model.path is one's."""
    run = run_of((given.get("model") or {}).get("path"))
    found: RawSettings = own_reward(given) if "rewards" in kind.model_fields else {}
    if run is None:
        return found
    config = _config(run)
    found["seed"] = (config.get("run") or {}).get("seed", 0)
    evaluated = "held_out" in kind.model_fields
    own_data = evaluated and (given.get("data") or {}).get("path") is None
    parts = {
        **{name: config.get(name) or {} for name in ("sampling", "rewards", "environment")},
        "model": _loading(config.get("model") or {}),
        "data": {} if _is_seeded(config) else _data(config.get("data") or {}, own_data),
    }
    for name, section in kind.model_fields.items():
        known = getattr(section.annotation, "model_fields", {})
        if name in parts:
            found[name] = {k: v for k, v in parts[name].items() if k in known}
    if "rewards" in found:
        found["rewards"] = _rewards(found["rewards"], given.get("rewards") or {})
    if own_data:
        found["held_out"] = True
    return found


def asked(kind: type[S], given: RawSettings) -> S:
    """The settings object: class defaults < the run's < what the user gave."""
    refuse_lost_rewards(kind, given)
    return completed(kind, below(kind, given), given)


def refuse_lost_rewards(kind: type[AskingSettings], given: RawSettings) -> None:
    """UserError where a run's rewards are needed that were objects of a Python program."""
    run = run_of((given.get("model") or {}).get("path"))
    if run is None or "rewards" not in kind.model_fields:
        return
    rewards = _config(run).get("rewards") or {}
    own = given.get("rewards") or {}
    if _lost(rewards) and not own.get("functions") and not own.get("models"):
        names = ", ".join(str(x).removeprefix(IN_MEMORY) for x in _lost(rewards))
        raise UserError(
            f"the rewards of {run} were objects of a Python program, which a run cannot keep "
            f"({names}): give them again, in Python as rewards=…, else as --rewards.functions "
            "FILE.py:NAME"
        )


def _config(run: Path) -> RawSettings:
    config = read_config(run / CONFIG)
    if "env" in config:
        raise UserError(
            f"{run} is the run of an agent in {config['env'].get('id', 'an environment')}, "
            "expected one of a language model"
        )
    return config


def _is_seeded(config: RawSettings) -> bool:
    """Whether the run had no data, as episodes of its environment begin from seeds."""
    parts = (config.get(name) or {} for name in ("model", "environment", "data"))
    model, environment, data = (part.get("path") for part in parts)
    return model is not None and environment is not None and data is None


def _loading(model: RawSettings) -> RawSettings:
    """Without where it began; bf16 is left to `auto`, as not all hardware has it."""
    kept = {key: value for key, value in model.items() if key not in _OWN}
    if kept.get("precision") == "bf16":
        del kept["precision"]
    return kept


def _data(data: RawSettings, own: bool) -> RawSettings:
    """The run's data, or only how prompts are read where others are given."""
    built_in = data.get("path") is None or str(data["path"]).startswith(PREFIX)
    if built_in:
        path = data.get("path") or PREFIX + chosen_world({"data": data})
        return {"path": path} if own else {}
    template = data.get("chat_template")
    if template is not None and not Path(template).expanduser().is_file():
        data = {**data, "chat_template": None}  # final/ keeps it
    return data if own else {k: v for k, v in data.items() if k not in _SOURCE}


def _rewards(rewards: RawSettings, given: RawSettings) -> RawSettings:
    """The run's, unless others are given, or they were objects of a Python program."""
    if not _lost(rewards) and not given.get("functions") and not given.get("models"):
        return rewards
    names = ("functions", "models", "weights")
    return {key: value for key, value in rewards.items() if key not in names}


def _lost(rewards: RawSettings) -> list[str]:
    """The functions that were objects of a Python program."""
    return [x for x in rewards.get("functions") or () if str(x).startswith(IN_MEMORY)]
