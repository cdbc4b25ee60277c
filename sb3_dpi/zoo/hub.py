"""RL Zoo's commands for the Hugging Face hub with what they miss: names that packages have changed, words on our agents."""

import importlib
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from sb3_dpi.zoo.register import ALGORITHMS

TRUST = "TRUST_REMOTE_CODE"
CARD_WORDS = {
    "Install the RL Zoo (with SB3 and SB3-Contrib)": "Install sb3_dpi, from a clone of its repository",
    "If you installed the RL Zoo3 via pip (`pip install rl_zoo3`), from anywhere you can do": "The same from any folder",
    "pip install rl_zoo3": "pip install -c constraints.txt -e '.[hub]'",
    "python -m rl_zoo3.load_from_hub": f"{TRUST}=True python -m sb3_dpi.zoo load_from_hub",
    "python -m rl_zoo3.": "python -m sb3_dpi.zoo ",
    "using the [stable-baselines3 library]": "using sb3_dpi (dual policy iteration), the [stable-baselines3 library]",
}
"""What RL Zoo's model card says, and what is true of our algorithms, which RL Zoo does not know by itself"""


def check_trust() -> None:
    """Let nobody download an agent unaware: it is a pickle, and runs code when it is loaded."""
    if os.environ.get(TRUST, "").lower() not in ("1", "on", "t", "true", "y", "yes"):
        raise ValueError(f"Loading an agent runs code that its file holds. If you trust who made it, set {TRUST}=True")


def _metadata(*given: Any) -> dict[str, Any]:
    pushing = importlib.import_module("huggingface_sb3.push_to_hub")
    metadata: dict[str, Any] = pushing._generate_metadata(*given).to_dict()
    return metadata


def completed_card(card: str, metadata: Mapping[str, Any]) -> str:
    """
    Put right what RL Zoo's model card says of an agent of this package, and add what it returned.

    :param card: Markdown, without its head
    :param metadata: Its head, with the evaluation
    """
    for said, meant in CARD_WORDS.items():
        card = card.replace(said, meant)
    result = metadata["model-index"][0]["results"][0]
    value, env_id = result["metrics"][0]["value"], result["dataset"]["name"]
    return f"{card.rstrip()}\n\n## Evaluation\nMean return of 10 episodes of {env_id}, with the standard deviation: {value}\n"


def _completing(save: Callable[..., None], algo: str) -> Callable[..., None]:
    def metadata_save(local_path: str | Path, data: dict[str, Any]) -> None:
        if algo in ALGORITHMS:
            path = Path(local_path)
            path.write_text(completed_card(path.read_text(encoding="utf-8"), data), encoding="utf-8")
            data = {**data, "tags": [*data["tags"], "sb3_dpi", algo]}
        save(local_path, data)

    return metadata_save


def _in_requests_words(load: Callable[..., str]) -> Callable[..., str]:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from requests.exceptions import HTTPError

    def load_from_hub(repo_id: str, filename: str) -> str:
        try:
            return load(repo_id, filename)
        except LocalEntryNotFoundError:  # no connection
            raise
        except EntryNotFoundError as error:
            # RL Zoo waits for this one where an agent has no VecNormalize
            raise HTTPError(f"{repo_id} has no file {filename}") from error

    return load_from_hub


@contextmanager
def _ffmpeg_by_name() -> Iterator[None]:
    """Let the ``ffmpeg`` that came with moviepy be found where the machine has none: videos are converted by that name."""
    if shutil.which("ffmpeg"):
        yield
        return
    import imageio_ffmpeg

    with TemporaryDirectory() as folder:
        Path(folder, "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        with patch.dict(os.environ, PATH=os.pathsep.join((folder, os.environ.get("PATH", "")))):
            yield


@contextmanager
def ready_for_hub(command: str, parsed: list[Namespace]) -> Iterator[None]:
    """
    Let RL Zoo's use of the hub go with the present versions of the hub's packages.

    :param command: Of RL Zoo; those that have nothing to do with the hub are left as they are
    :param parsed: Where its arguments will be once it has parsed them
    """
    with ExitStack() as patches:
        if command == "push_to_hub":
            from huggingface_hub import repocard

            save = repocard.metadata_save
            patches.enter_context(
                patch.object(repocard, "metadata_save", lambda *given: _completing(save, parsed[0].algo)(*given))
            )
            pushing = importlib.import_module("huggingface_sb3.push_to_hub")  # the package has a function of this name
            patches.enter_context(patch.object(pushing, "generate_metadata", _metadata, create=True))
            patches.enter_context(_ffmpeg_by_name())
        elif command in ("load_from_hub", "enjoy"):
            import huggingface_sb3

            load = _in_requests_words(huggingface_sb3.load_from_hub)
            patches.enter_context(patch.object(huggingface_sb3, "load_from_hub", load))
        yield
