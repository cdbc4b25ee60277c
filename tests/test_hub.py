"""Agents on the Hugging Face hub, of which a folder takes the place: there, back, and run."""

import json
import os
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from forks import forked
from gymnasium.envs.classic_control import PendulumEnv
from hub_folder import _Missing, use_folder
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from sb3_dpi import MDGPS
from sb3_dpi.zoo import environments, hub
from sb3_dpi.zoo.__main__ import main

NAME = "mdgps-Pendulum-v1"


def begin(folder: Path) -> None:
    """In a process of its own, of which a file gets what it says."""
    with (folder / "said").open("w") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1) for stream in (1, 2))
    os.chdir(folder)
    use_folder(Path("the_hub"))


def push_load_and_enjoy(folder: Path) -> None:
    """Ends with an error that is printed."""
    begin(folder)
    os.environ["TRUST_REMOTE_CODE"] = "True"
    agent = "--algo mdgps --env Pendulum-v1 --device cpu".split()
    main(["push_to_hub", *agent, "-orga", "me", "-n", "10"])
    main(["load_from_hub", *agent[:4], "-orga", "me", "-f", "back"])
    main(["enjoy", *agent, "-f", "back", "--no-render", "-n", "20"])
    del os.environ["TRUST_REMOTE_CODE"]
    with pytest.raises(SystemExit) as refused:
        main(["load_from_hub", *agent[:4], "-orga", "me"])
    print(refused.value.code)


def push_endless(folder: Path) -> None:
    begin(folder)
    gym.register("Endless-v0", PendulumEnv)
    environments.LONGEST_EPISODE = 30  # type: ignore[misc]
    main("push_to_hub --algo mdgps --env Endless-v0 --device cpu -orga me --no-render".split())


def store_agent(logs: Path, env_id: str = "Pendulum-v1") -> None:
    """As RL Zoo's training does."""
    run = logs / "mdgps" / f"{env_id}_1"
    (run / env_id).mkdir(parents=True)
    MDGPS("MlpPolicy", "Pendulum-v1", horizon=10, seed=0).save(run / f"{env_id}.zip")
    (run / env_id / "config.yml").write_text(yaml.safe_dump({"horizon": 10, "policy": "MlpPolicy", "normalize": False}))
    (run / env_id / "args.yml").write_text(yaml.safe_dump({"algo": "mdgps", "env_kwargs": None}))


def test_there_and_back(tmp_path: Path) -> None:
    store_agent(tmp_path / "logs")
    with forked(lambda: push_load_and_enjoy(tmp_path)) as process:
        code, _ = process.end()
    said = (tmp_path / "said").read_text()
    assert code == 0 and said.endswith("If you trust who made it, set TRUST_REMOTE_CODE=True\n"), said
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
    assert card.text.count("pip install") == card.text.count("pip install -c constraints.txt -e '.[hub]'\n") == 1
    assert "using sb3_dpi" in card.text

    for name in ("args.yml", "config.yml"):
        there, back = (tmp_path / folder / "mdgps" / "Pendulum-v1_1" / "Pendulum-v1" / name for folder in ("logs", "back"))
        assert there.read_bytes() == back.read_bytes()


def test_episodes_that_do_not_end_are_cut(tmp_path: Path) -> None:
    store_agent(tmp_path / "logs", "Endless-v0")
    with forked(lambda: push_endless(tmp_path)) as process:
        code, _ = process.end()
    said = (tmp_path / "said").read_text()
    assert code == 0 and "Endless-v0 has no time limit, or a very long one: the episodes of an evaluation are cut" in said, (
        said
    )
    results = json.loads((tmp_path / "the_hub" / "me" / "mdgps-Endless-v0" / "results.json").read_text())
    assert -30 * 17 < results["mean_reward"] < 0  # a step of the pendulum costs up to 16.3


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

    for raised, expected in (
        (LocalEntryNotFoundError("offline"), LocalEntryNotFoundError),
        (_Missing("404"), HTTPError),
    ):

        def load(repo_id: str, filename: str, raised: Exception = raised) -> str:
            raise raised

        with pytest.raises(expected):
            hub._in_requests_words(load)("me/it", "vec_normalize.pkl")
