"""A folder in place of the Hugging Face hub: a folder in it is a repository."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub
from huggingface_hub.errors import RemoteEntryNotFoundError


class _Missing(RemoteEntryNotFoundError):
    """As the hub says it, without the answer of a server."""

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)


def use_folder(hub: Path) -> None:
    """Let everything that the package and RL Zoo ask of the hub be answered from a folder, to the end of the process."""

    def create_repo(self: Any, repo_id: str, **_: Any) -> str:
        (hub / repo_id).mkdir(parents=True, exist_ok=True)
        (hub / repo_id / ".gitattributes").touch()
        return f"folder:{repo_id}"

    def snapshot_download(self: Any, repo_id: str, local_dir: Path, **_: Any) -> None:
        shutil.copytree(hub / repo_id, local_dir, dirs_exist_ok=True)

    def upload_folder(self: Any, repo_id: str, folder_path: Path, **_: Any) -> None:
        shutil.copytree(folder_path, hub / repo_id, dirs_exist_ok=True)

    def download(repo_id: str, filename: str, **_: Any) -> str:
        if not (path := hub / repo_id / filename).is_file():
            raise _Missing(f"404: {path}")
        return str(path)

    for method in (create_repo, snapshot_download, upload_folder):
        patch.object(huggingface_hub.HfApi, method.__name__, method).start()
    patch.object(huggingface_hub, "hf_hub_download", download).start()
