"""Finished runs, written as the lab does."""

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dpi.compare import RunConfig, run_one
from sb3_dpi.compare.engines import Ended, Progress, RunFailed
from sb3_dpi.compare.record import RECORD, make_record
from sb3_dpi.compare.store import Store
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


class InProcess:
    """Executes runs one after the other in this process."""

    def __init__(self) -> None:
        self.executed: list[str] = []

    def run(self, configs: Sequence[RunConfig], store: Store, report: Progress) -> Generator[Ended, None, None]:
        for config in configs:
            self.executed.append(str(config))
            report(config, 0, None)
            if config.label == "bad":
                yield Ended(config, RunFailed(config, "as planned", store.log(config)))
                continue
            run_one(config, store.unfinished(config), lambda steps, mean, config=config: report(config, steps, mean))
            store.commit(config)
            yield Ended(config, None)


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


def harm(name: str, folder: Path) -> None:
    path = folder / ("run.json" if name.startswith(("record", "hash")) else "evaluations.npz")
    if name in ("record truncated", "evaluations truncated"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "record empty":
        path.write_bytes(b"")
    elif name == "record is a list":
        path.write_text("[]")
    elif name == "record is not text":
        path.write_bytes(b"\xff\xfe\x00")
    elif name == "record without a key":
        record = json.loads(path.read_text())
        del record["timing"]["cpu_seconds"]
        path.write_text(json.dumps(record))
    elif name == "record of the future":
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    elif name == "hash differs":
        path.write_text(json.dumps({**json.loads(path.read_text()), "evaluations_sha256": "0" * 64}))
    elif name == "evaluations replaced":
        np.savez(path, timesteps=[1], results=[[1.0]], ep_lengths=[[1]])
    elif name == "evaluations gone":
        path.unlink()


class NoEngine:
    """Runs nothing."""

    def run(self, configs: Any, store: Store, update: Any) -> Any:
        raise AssertionError(f"would be done again: {configs}")
