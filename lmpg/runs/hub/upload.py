"""Uploads a run's model to the Hugging Face Hub, by whose client's token, cache and endpoint."""

from __future__ import annotations

from pathlib import Path

from lmpg.settings.section import UserError


def require_repository(name: str) -> None:
    """Makes sure before a run that its model can be uploaded: there is a token, and the repository
    may be written to. A new one is made, and is private. UserError otherwise."""
    from huggingface_hub import HfApi  # slow to import, and for few runs

    hub = HfApi()
    try:
        me = hub.whoami()["name"]
        if name.count("/") != 1:
            raise ValueError(
                f"it names no owner, as {me}/{name.strip('/').rpartition('/')[2]} does"
            )
        hub.create_repo(name, private=True, exist_ok=True)
        hub.auth_check(name, write=True)
    except Exception as error:  # of the network, the client, the server
        raise UserError(
            f"run.push_to_hub = {name}: {_reason(error)}; expected the name of a repository on the "
            "Hub that your token may write to (hf auth login, or the variable HF_TOKEN)"
        ) from None


def upload(folder: Path, name: str, message: str) -> str:
    """Uploads a folder's files; returns where they are. UserError where that fails, after which the
    same command tries again."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # whatever it is: the run has finished
        raise UserError(
            f"run.push_to_hub = {name}: {folder} could not be uploaded ({_reason(error)}). The run "
            f"has finished, and all of it is saved; the same command with --run.output-dir "
            f"{folder.parent} --run.resume uploads it, and so does `hf upload {name} {folder}`"
        ) from None
    return f"{hub.endpoint}/{name}"


def _reason(error: Exception) -> str:
    """An error and what caused it, in one line."""
    both = [error, *([error.__cause__] if error.__cause__ else [])]
    said = " ".join(" ".join(str(x).split()) or type(x).__name__ for x in both)
    said = said.rstrip(".")
    return said if len(said) <= 300 else said[:299] + "…"
