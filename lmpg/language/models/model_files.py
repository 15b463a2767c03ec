"""The files that a model's folder is read from, for fingerprints."""

from __future__ import annotations

from pathlib import Path

from transformers.utils.hub import cached_file

from lmpg.language.models.critic import FOLDER as CRITIC

READ = {".json", ".safetensors", ".bin", ".model", ".tiktoken", ".jinja", ".txt", ".py"}
NOT_READ = {"trainer_state.json", "training_args.bin", "facts.json", "manifest.json"}


def model_files(path: str) -> dict[str, Path]:
    """Weights, configs, tokenizer and code of a folder or Hub id, by their names in it; of a Hub id
    those in the cache, where loading has put them."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        try:
            found = cached_file(path, "config.json", local_files_only=True)
        except (OSError, ValueError):
            found = None
        if found is None:
            return {}
        folder = Path(found).parent
    return {
        str(file.relative_to(folder)): file
        for part in (folder, folder / CRITIC)
        for file in sorted(part.glob("*"))
        if file.is_file() and file.suffix in READ and file.name not in NOT_READ
    }
