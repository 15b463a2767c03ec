"""The files that a model's folder is read from: for fingerprints, and what is wrong with them."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from lmpg.language.models.critic import FOLDER as CRITIC
from lmpg.language.models.paths import ADAPTER_CONFIG
from lmpg.language.models.settings import ModelSettings
from lmpg.settings.on_the_hub import remember_commit
from lmpg.settings.section import UserError

READ = {".json", ".safetensors", ".bin", ".model", ".tiktoken", ".jinja", ".txt", ".py"}
NOT_READ = {"trainer_state.json", "training_args.bin", "facts.json", "manifest.json"}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_FETCHED = ("deepgemm", "deep-gemm", "sonicmoe", "sonic-moe")
"""Implementations of experts that are kernels from the Hub."""
_FLASH = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}
"""Packages without which transformers fetches a kernel in their place."""
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
"""As safetensors calls them."""
_CONFIGS = ("config.json", ADAPTER_CONFIG)
_OBJECTS = ("config", "generation_config", "model", "tokenizer")
"""What files that hold one JSON object are called."""
_PART = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def model_files(path: str, revision: str | None = None) -> dict[str, Path]:
    """Weights, configs, tokenizer and code of a folder or Hub id, by their names in it; of a Hub id
    those in the cache, where loading has put them."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        found = next(filter(None, (_cached(path, x, revision) for x in _CONFIGS)), None)
        if found is None:
            return {}
        folder = Path(found).parent
        remember_commit(path, folder)
    return {
        str(file.relative_to(folder)): file
        for part in (folder, folder / CRITIC)
        for file in sorted(part.glob("*"))
        if file.is_file() and file.suffix in READ and file.name not in NOT_READ
    }


def _cached(path: str, name: str, revision: str | None) -> str | None:
    try:
        return cached_file(path, name, local_files_only=True, revision=revision)
    except (OSError, ValueError):
        return None


def refuse_pointers(key: str, folder: Path) -> None:
    """A Git LFS pointer in place of a tokenizer's text (a chat template) would be read as it."""
    for path in sorted([*folder.glob("*.jinja"), *folder.glob("*.txt")]):
        try:
            _refuse_pointer(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{key} = {folder}: its {path.name} {error}, expected a folder written by "
                "save_pretrained"
            ) from None


def integer_weights(path: str, revision: str | None = None) -> list[str]:
    """Names of weights that are saved as integers, as quantised ones are."""
    kinds = _kinds_of_weights(path, revision)
    return [x for x, kind in kinds.items() if x.endswith("weight") and kind in _INTEGERS]


def is_saved_in_bf16(path: str, revision: str | None = None) -> bool:
    """Whether all weights lie in files of safetensors, in bfloat16; False where that is not known,
    as of a model that has yet to be fetched."""
    try:
        return {*_kinds_of_weights(path, revision).values()} == {"BF16"}
    except (OSError, SafetensorError):  # what is wrong with them is told when they are loaded
        return False


def _kinds_of_weights(path: str, revision: str | None) -> dict[str, str]:
    """What the weights in files of safetensors are saved as, by their names."""
    found: dict[str, str] = {}
    for name, file in model_files(path, revision).items():
        if name.startswith("model") and file.suffix == ".safetensors":
            status = file.stat()
            found |= _kinds_in(file, status.st_mtime_ns, status.st_size)
    return found


@cache
def _kinds_in(file: Path, changed: int, size: int) -> dict[str, str]:
    """The same of one file, whose header is read once as long as it is not written anew."""
    with safe_open(str(file), "pt") as tensors:
        return {x: tensors.get_slice(x).get_dtype() for x in tensors.keys()}  # noqa: SIM118


def start_files(settings: ModelSettings) -> dict[str, dict[str, Path]]:
    """The files that `model.path` (an adapter with its base model) and `model.tokenizer`, where
    there is one, are read from."""
    mine = model_files(str(settings.path), settings.revision)
    if ADAPTER_CONFIG in mine:
        config = json.loads(mine[ADAPTER_CONFIG].read_text(encoding="utf-8"))
        base = model_files(config["base_model_name_or_path"], config.get("revision"))
        mine |= {f"base model/{name}": file for name, file in base.items()}
    found = {"model.path": mine}
    if settings.tokenizer is not None:
        files, weights = model_files(settings.tokenizer), (".safetensors", ".bin")
        own = {name: file for name, file in files.items() if file.suffix not in weights}
        found["model.tokenizer"] = own
    return found


def refuse_broken_settings(key: str, folder: Path) -> None:
    """transformers passes over a generation_config.json that it cannot read, EOS tokens and all."""
    for path in (folder / "config.json", folder / "generation_config.json"):
        try:
            if path.is_file():
                _read(path)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{key} = {folder}: its {path.name} {error}, expected a folder written by "
                "save_pretrained; mend the file"
            ) from None


def refuse_fetched_kernels(key: str, path: str, revision: str | None = None) -> None:
    """A config may name code on the Hub for its attention or its experts, which transformers would
    fetch and run, whatever `trust_remote_code` says."""
    folder = Path(path).expanduser()
    try:
        place = folder if folder.is_dir() else path
        config, _ = PreTrainedConfig.get_config_dict(place, revision=revision)
    except (OSError, ValueError):
        return  # loading tells what is wrong
    for name, value in _implementations(config):
        if "/" in value or value in _FETCHED or (value in _FLASH and not _installed(_FLASH[value])):
            raise UserError(
                f"{key} = {path}: its config.json asks for {name} = {value}, a kernel that would "
                "be fetched from the Hub and run, expected sdpa, eager or flex_attention (experts: "
                "grouped_mm, batched_mm or eager); change it or take it out"
            )


def _implementations(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(key, value) of every implementation that a config names, its parts' among them."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _implementations(value, key if key.endswith("_implementation") else name)
    elif name and isinstance(config, str):
        yield name, config


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def damage(folder: Path, what: str, key: str) -> str | None:
    """The first file of a model's folder that cannot be read, or is missing, and why; None if all
    can. key: the setting that names the folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        try:
            if path.is_file():
                _read(path)
        except (OSError, ValueError, RecursionError) as error:
            return f"{path.name} {error}"
    names = {path.name for path in paths}
    if not folder.is_dir():
        return None
    if what == "tokenizer" and not names & {*_TOKENIZERS}:
        if (folder / "final").is_dir():
            return f"it is the folder of a run, whose model lies in {folder / 'final'}; name that"
        lacks = "holds no tokenizer.json" if names else "is empty and holds no tokenizer.json"
        other = ", or name another's by --model.tokenizer" if key == "model.path" else ""
        return f"it {lacks}; save the tokenizer beside the model{other}"
    parts = [name for name in sorted(names) if _PART.fullmatch(name)]
    if what != "tokenizer" and parts and not any(x.endswith(".index.json") for x in names):
        return (
            f"it holds parts of the weights ({parts[0]}, …), but no index of them, as "
            "model.safetensors.index.json is; copy that too"
        )
    return None


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(
                "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
            )


def _read(path: Path) -> None:
    """Raises an error that goes on after the file's name, unless its beginning is in order."""
    _refuse_pointer(path)
    if path.suffix == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"is no JSON ({error})") from None
        if not isinstance(found, dict) and path.name.startswith(_OBJECTS):
            raise ValueError(f"holds a {type(found).__name__}, expected an object")
        if path.name == "tokenizer.json" and "model" not in found:
            raise ValueError("is none that the library `tokenizers` wrote")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"is cut short or no safetensors file ({path.stat().st_size} bytes: {error}); "
                "copy it again"
            ) from None
