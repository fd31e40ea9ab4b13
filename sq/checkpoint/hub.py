"""Packed folders on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from sq.checkpoint.manifest import CONFIG, damaged_files, run_of
from sq.errors import CheckpointError


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a model packed by SingleQuant",
) -> str:
    """Upload a packed folder with its model card, digests and loading module; return the address of the commit.

    Args:
        folder: written by `run.py save_to=` or `sq.save_packed`.
        repo_id: owner/name; the repository is made where there is none. HF_ENDPOINT names another hub.
        private: of a new repository; None is the hub's default.
        token: None takes that of `hf auth login`, or HF_TOKEN.
        revision: a branch, made where there is none; None is the main one.

    Raises:
        CheckpointError: no packed folder, or one whose files are not what was written.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses it.
    """
    from huggingface_hub import HfApi

    folder = Path(folder).expanduser()
    if run_of(folder) is None:
        raise CheckpointError(
            f"{folder} is no packed folder with an unchanged {CONFIG}; write one with `python run.py save_to=FOLDER` "
            "or sq.save_packed(model, FOLDER)"
        )
    if wrong := damaged_files(folder):
        raise CheckpointError(f"{folder} is damaged ({'; '.join(wrong[:3])}), so it is not uploaded: write it again")
    api = HfApi(token=token)
    repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository, folder_path=folder, revision=revision, commit_message=message, ignore_patterns=[".*"]
    )
    return str(done.commit_url)
