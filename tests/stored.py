"""Finished runs, written as the lab does."""

import json
from pathlib import Path

import numpy as np

from sb3_dpi.compare import RunConfig
from sb3_dpi.compare.store import (
    RECORD,
    Store,
    make_record,
)
from sb3_dpi.compare.types import Timing

CONFIG = RunConfig(
    algo="ppo",
    env_id="Pendulum-v1",
    seed=1,
    n_timesteps=1000,
    hyperparams={"policy": "MlpPolicy", "gamma": 0.9, "policy_kwargs": {"net_arch": [8], "ortho_init": False}},
    source="the test",
)
TIMING = Timing(4.0, 3.0, 2.0, 1.0)


def write(store: Store, config: RunConfig, value: float = 0.0) -> Path:
    """Write a finished run as ``run_one`` would."""
    folder = store.unfinished(config)
    settings = folder / config.env_name
    settings.mkdir(parents=True)
    for name in ("config.yml", "args.yml", "vecnormalize.pkl"):
        (settings / name).write_text(f"{config}")
    for name in ("best_model.zip", f"{config.env_name}.zip", "0.monitor.csv", "progress.csv"):
        (folder / name).write_text("x" * 1000)
    steps = 100 * np.arange(1, 4)
    np.savez_compressed(
        folder / "evaluations.npz",
        timesteps=steps,
        results=np.full((3, 2), value) + np.arange(2.0),
        ep_lengths=np.full((3, 2), 200),
        wall_seconds=steps / 10,
    )
    (folder / RECORD).write_text(json.dumps(make_record(config, TIMING, folder)))
    store.commit(config)
    return store.folder(config)


def contents(*folders: Path) -> set[bytes]:
    """All that is in all files."""
    return {path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
