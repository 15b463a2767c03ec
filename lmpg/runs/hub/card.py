"""The model card of what a run has trained: README.md in the format of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from lmpg.runs.report.meanings import held_out_note
from lmpg.runs.resumable import FOLDER_OF_CODE

NAME = "README.md"
_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
}
"""transformers' class for a task, as the Hub calls it."""


def write_cards(folder: Path, task: str, settings: dict[str, Any], summary: dict[str, Any]) -> None:
    """Puts a card beside the model in `folder`, and beside the whole model in its merged/.

    task: as the Hub calls it. settings: as config.yaml holds them. summary: as summary.json does.
    """
    adapter = (folder / "adapter_config.json").is_file()
    for place, alone in ((folder, adapter), (folder / "merged", False)):
        if place.is_dir():
            card = model_card(task, settings, summary, adapter=alone)
            (place / NAME).write_text(card, encoding="utf-8")


def model_card(
    task: str, settings: dict[str, Any], summary: dict[str, Any], *, adapter: bool = False
) -> str:
    """The card's text: metadata for the Hub, how to load the model, what it scored, how it was
    trained; of local files only the names. adapter: the folder holds an adapter alone."""
    from huggingface_hub import ModelCard, ModelCardData  # slow to import

    metadata = ModelCardData(
        base_model=base_on_the_hub(settings["model"]["path"]),
        datasets=[name] if (name := _dataset_on_the_hub(settings["data"]["path"])) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        tags=["lmpg", summary["name"], *(["lora"] if adapter else [])],
    )
    parts = [
        f"# {_title(settings, summary)}",
        _origin(settings, summary, adapter),
        f"## How to load it\n\n{_loading(task, settings, adapter)}",
        f"## Before and after\n\n{_scores(summary)}",
        f"## How it was trained\n\n{_training(settings, summary)}",
    ]
    text = "\n\n".join(parts)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n"))


def base_on_the_hub(path: str | None) -> str | None:
    """The Hub id of a model; for a folder that of the model which its card says it came from; None
    where neither is known."""
    from huggingface_hub.repocard import metadata_load

    if path is None or not (folder := Path(path).expanduser()).is_dir():
        return path
    try:
        found = metadata_load(folder / NAME) if (folder / NAME).is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    base = (found or {}).get("base_model")
    return base if isinstance(base, str) else None


def _dataset_on_the_hub(source: str | None) -> str | None:
    if source is None or os.path.exists(os.path.expanduser(source)) or _is_made(source):
        return None
    return source.partition(":")[0]


def _is_made(source: str) -> bool:
    """Whether a source of data is made by a program: a built-in world, a task of reasoning-gym."""
    return source.startswith(("world:", "reasoning_gym:"))


def _title(settings: dict[str, Any], summary: dict[str, Any]) -> str:
    repository = settings["run"].get("push_to_hub")
    return repository.rpartition("/")[2] if repository else f"{_base(settings)}, {summary['name']}"


def _base(settings: dict[str, Any]) -> str:
    """What the model started from, in a few words."""
    path = settings["model"]["path"]
    if path is None:
        return f"the model of the built-in world {settings['data']['world']}"
    return base_on_the_hub(path) or _name_of(path)


def _name_of(path: str) -> str:
    """The name of a local model: of the run, where it lies in a run's folder."""
    parts = [x for x in Path(path).expanduser().parts if x not in ("final", "merged", "best")]
    return parts[-1]


def _origin(settings: dict[str, Any], summary: dict[str, Any], adapter: bool) -> str:
    base, data = _base(settings), settings["data"]
    on_the_hub = base_on_the_hub(settings["model"]["path"])
    if on_the_hub and (revision := settings["model"].get("revision")):
        base = f"{base} (revision {revision})"
    what = "An adapter (LoRA) for" if adapter else "Made from"
    given = data["path"] or f"the built-in world {data['world']}"
    revision = f" (revision {data['revision']})" if data.get("revision") else ""
    version = summary["versions"]["lmpg"]
    return (
        f"{what} {base} by `{summary['name']}` in lmpg {version}, on "
        f"{without_folders(given)}{revision}."
    )


def _loading(task: str, settings: dict[str, Any], adapter: bool) -> str:
    place, model = settings["run"].get("push_to_hub") or "FOLDER", _CLASSES[task]
    kind, imported = model, [f"from transformers import {model}, AutoTokenizer"]
    if adapter:
        kind = model.replace("Auto", "AutoPeft", 1)
        imported = [f"from peft import {kind}", "from transformers import AutoTokenizer"]
    lines = [
        "```python",
        *imported,
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")',
        f'model = {kind}.from_pretrained("{place}")',
        "```",
    ]
    if adapter:
        whole = f'{model}.from_pretrained("{place}", subfolder="merged")'
        lines += ["", f"The whole model, for plain transformers: `{whole}`."]
    return "\n".join(lines)


def _scores(summary: dict[str, Any]) -> str:
    before, after = summary.get("before") or {}, summary.get("after") or {}
    rows = [
        f"| {name} | {_number(before.get(name))} | {_number(value)} | {held_out_note(name)} |"
        for name, value in after.items()
    ]
    head = "On data that were held out.\n\n| | before | after | |\n|---|---|---|---|"
    return "\n".join([head, *rows])


def _training(settings: dict[str, Any], summary: dict[str, Any]) -> str:
    rewards = settings.get("rewards", {})
    judges = [*rewards.get("functions", ()), *rewards.get("models", ())]
    facts = {
        "method": f"`{summary['name']}`, {_counted(summary['steps'], 'step')}",
        "rewards": ", ".join(f"`{without_folders(x)}`" for x in judges),
        "seed": settings["run"]["seed"],
        "on": f"{summary['device']}, {_counted(summary['num_processes'], 'process', 'es')}",
        "versions": ", ".join(f"{name} {x}" for name, x in summary["versions"].items()),
    }
    rows = [f"| {name} | {fact} |" for name, fact in facts.items() if fact != ""]
    shown = yaml.safe_dump(_named(settings), sort_keys=False, allow_unicode=True)
    return "\n".join(["| | |", "|---|---|", *rows]) + (
        "\n\n<details><summary>All settings, as "
        f"<code>lmpg train {summary['name']} --config FILE</code> takes them</summary>\n\n"
        f"```yaml\n{shown}```\n\n</details>"
    )


def _counted(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{plural if count != 1 else ''}"


def _named(values: Any) -> Any:
    """Nested settings in which local files and folders have lost the folders around them."""
    if isinstance(values, dict):
        return {key: _named(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_named(value) for value in values]
    return without_folders(values) if isinstance(values, str) else values


def without_folders(text: str) -> str:
    """The name alone of a local file or folder, or of a function in one; others as they are."""
    if FOLDER_OF_CODE.match(text):
        return FOLDER_OF_CODE.sub("", text)
    place = os.path.expanduser(text)
    if "/" in text and (text.startswith(("/", "~/", "./", "../")) or os.path.exists(place)):
        return Path(place).name
    return text


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
