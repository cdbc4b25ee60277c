"""Agents on the Hugging Face hub, of which a folder takes the place: there, back, and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_folder import _Missing
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from sb3_dpi import MDGPS
from sb3_dpi.zoo import hub

NAME = "mdgps-Pendulum-v1"
PROGRAM = """
import hub_folder, os, pathlib
from sb3_dpi.zoo.__main__ import main

hub_folder.use_folder(pathlib.Path("the_hub"))
agent = "--algo mdgps --env Pendulum-v1 --device cpu".split()
main(["push_to_hub", *agent, "-orga", "me", "-n", "10"])
main(["load_from_hub", *agent[:4], "-orga", "me", "-f", "back"])
main(["enjoy", *agent, "-f", "back", "--no-render", "-n", "20"])
del os.environ["TRUST_REMOTE_CODE"]
main(["load_from_hub", *agent[:4], "-orga", "me"])
"""


def store_agent(run: Path) -> None:
    """As RL Zoo's training does."""
    (run / "Pendulum-v1").mkdir(parents=True)
    MDGPS("MlpPolicy", "Pendulum-v1", horizon=10, seed=0).save(run / "Pendulum-v1.zip")
    (run / "Pendulum-v1" / "config.yml").write_text(yaml.safe_dump({"horizon": 10, "policy": "MlpPolicy", "normalize": False}))
    (run / "Pendulum-v1" / "args.yml").write_text(yaml.safe_dump({"algo": "mdgps", "env_kwargs": None}))


def test_there_and_back(tmp_path: Path) -> None:
    store_agent(tmp_path / "logs" / "mdgps" / "Pendulum-v1_1")
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRUST_REMOTE_CODE": "True"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and done.stderr.endswith("If you trust who made it, set TRUST_REMOTE_CODE=True\n"), said
    assert "Loading back/mdgps/Pendulum-v1_1/Pendulum-v1.zip" in said and "No normalization file" in said

    stored = tmp_path / "the_hub" / "me" / NAME
    names = {path.name for path in stored.iterdir()}
    assert names >= {f"{NAME}.zip", "args.yml", "config.yml", "env_kwargs.yml", "results.json", "train_eval_metrics.zip"}
    assert (stored / "replay.mp4").read_bytes()[4:8] == b"ftyp"

    card, results = ModelCard.load(stored / "README.md"), json.loads((stored / "results.json").read_text())
    assert set(card.data.tags) >= {"Pendulum-v1", "stable-baselines3", "sb3_dpi", "mdgps"}
    score = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    assert card.data.eval_results[0].metric_value == score
    assert card.text.rstrip().endswith(score) and "'horizon': 10" in card.text
    # its commands are those that know the algorithm
    assert "rl_zoo3." not in card.text and card.text.count("TRUST_REMOTE_CODE=True python -m sb3_dpi.zoo load_from_hub") == 2
    assert "pip install 'sb3_dpi[hub]'\n" in card.text and "using sb3_dpi" in card.text

    for name in ("args.yml", "config.yml"):
        there, back = (tmp_path / folder / "mdgps" / "Pendulum-v1_1" / "Pendulum-v1" / name for folder in ("logs", "back"))
        assert there.read_bytes() == back.read_bytes()


@pytest.mark.parametrize("trusts", ["", "0", "no"])
def test_downloads_are_trusted_in_so_many_words(trusts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.TRUST, trusts)
    with pytest.raises(ValueError, match="TRUST_REMOTE_CODE=True"):
        hub.check_trust()
    monkeypatch.setenv(hub.TRUST, "true")
    hub.check_trust()


def test_a_missing_connection_is_no_missing_file() -> None:
    """RL Zoo takes the second for an agent without VecNormalize."""
    from requests.exceptions import HTTPError

    for raised, expected in ((LocalEntryNotFoundError("offline"), LocalEntryNotFoundError), (_Missing("404"), HTTPError)):

        def load(repo_id: str, filename: str, raised: Exception = raised) -> str:
            raise raised

        with pytest.raises(expected):
            hub._in_requests_words(load)("me/it", "vec_normalize.pkl")
