"""Where models lie: a folder, or an id on the Hub."""

from __future__ import annotations

from pathlib import Path

from lmpg.settings.hints import did_you_mean
from lmpg.settings.raw import IN_MEMORY
from lmpg.settings.section import UserError

ADAPTER_CONFIG = "adapter_config.json"
"""What peft writes beside an adapter."""

ADAPTER_IN_MEMORY = f"{IN_MEMORY}adapter"
"""What settings call an adapter that is given as an object."""


def is_adapter_folder(path: str | None) -> bool:
    """Whether an adapter lies there, or is given as an object."""
    if path == ADAPTER_IN_MEMORY:
        return True
    return path is not None and (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def refuse_missing_folder(key: str, path: str, what: str, revision: str | None = None) -> None:
    """UserError where `path`, the setting `key`, is no folder and can be no Hub id either.

    what: is to lie there, for the message. revision: of a Hub id, which a folder has none of.
    """
    if Path(path).expanduser().is_dir():
        if revision is not None:
            raise UserError(
                f"model.revision = {revision}, but {key} = {path} is a folder, expected a Hub id, "
                "whose branches, tags and commits it names; leave it out"
            )
        return
    if Path(path).expanduser().is_file():
        raise UserError(
            f"{key} = {path} is a file, expected a folder with a {what}, as save_pretrained writes "
            "it, or a Hub id; name the folder"
        )
    folder = Path(path).expanduser().parent
    beside = did_you_mean(Path(path).name, _runs_in(folder)) if "/" in path else ""
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or beside:
        raise UserError(
            f"{key} = {path} does not exist, {beside}expected a folder with a {what} or a Hub id; "
            "mend the path"
        )


def _runs_in(folder: Path) -> list[str]:
    """The runs of lmpg there; `runs/first` would be a Hub id by its form alone."""
    return [config.parent.name for config in folder.glob("*/config.yaml")]
