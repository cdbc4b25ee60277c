"""A run that goes on after a crash: model, replay buffer, normalisation and counters in one file."""

import io
import os
import pickle
import re
import secrets
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_dpi.common.replay_memory import deal_out
from sb3_dpi.data.episodes import DataError

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)
MODEL, BUFFER, NORMALIZATION, GENERATORS = "model.zip", "replay_buffer.pkl", "vecnormalize.pkl", "generators.pkl"
CLASSES = "classes.txt"
"""The model's class and those that it is derived from: SB3's files do not say which algorithm wrote them."""


def save_run(model: BaseAlgorithm, path: str | os.PathLike[str]) -> None:
    """
    Save all that a run needs to go on. Killed in the middle, it leaves the former file whole.

    Best between rollouts, as ``SaveRun`` does: the step that is being taken is in no buffer yet.

    :param model: of this package or of Stable-Baselines3
    :param path: of one file, replaced once the new one is whole and on the disk
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # not by tempfile, which keeps its files from all other users
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with unfinished.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                _write(model, archive)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    for left in target.parent.iterdir():  # of those that were killed
        if re.fullmatch(rf"\.{re.escape(target.name)}\.\w+\.unfinished", left.name):
            left.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _write(model: BaseAlgorithm, archive: zipfile.ZipFile) -> None:
    whole = io.BytesIO()
    model.save(whole)
    archive.writestr(CLASSES, "\n".join(kind.__name__ for kind in type(model).__mro__))
    archive.writestr(MODEL, whole.getvalue())
    if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
        with archive.open(BUFFER, "w", force_zip64=True) as file:
            pickle.dump(model.replay_buffer, file)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        with archive.open(NORMALIZATION, "w", force_zip64=True) as file:
            pickle.dump(normalizer, file)
    own = getattr(model, "_rng", None)
    generators = {"numpy": np.random.get_state(), "torch": th.get_rng_state(), "own": own}
    archive.writestr(GENERATORS, pickle.dumps(generators))


def _sync_folder(folder: Path) -> None:
    """The name of a file is on the disk once its folder is; where folders cannot be opened there is nothing to do."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_run(
    algorithm: type[Algorithm], path: str | os.PathLike[str], env: GymEnv | str | None = None, **kwargs: Any
) -> Algorithm:
    """
    Take up a run where ``save_run`` left it; ``learn(..., reset_num_timesteps=False)`` goes on.

    What comes out of the file is unpickled: load only what you trust.

    :param algorithm: that of the model
    :param path: of the file
    :param env: to go on in, without VecNormalize, which comes from the file, any number of them; None to predict or to learn
        offline only
    :param kwargs: of the algorithm's ``load``
    :return: the model, with replay buffer, normalisation and counters
    :raises DataError: if the file is missing, is none of ``save_run``, is of another algorithm or another environment, or the
        environment normalises already
    """
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist: save_run(model, path) writes it")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if MODEL not in names:
                if _begins_a_run(path):  # what ends too early shows the archive of the model within
                    raise zipfile.BadZipFile
                raise DataError(f"{path} was not written by save_run: load it with {algorithm.__name__}.load")
            written = archive.read(CLASSES).decode().split("\n") if CLASSES in names else [algorithm.__name__]
            if algorithm.__name__ not in written and written[0] not in [kind.__name__ for kind in algorithm.__mro__]:
                raise DataError(f"{path} holds a run of {written[0]}: load_run({written[0]}, path), not {algorithm.__name__}")
            wrapped = _with_statistics(algorithm, archive if NORMALIZATION in names else None, env, path)
            model = _loaded(algorithm, archive, wrapped, path, kwargs)
            if BUFFER in names:
                assert isinstance(model, OffPolicyAlgorithm)
                with io.BufferedReader(archive.open(BUFFER)) as file:  # type: ignore[type-var]
                    model.load_replay_buffer(file)
                _fit_to_environments(model, path)
            generators = pickle.loads(archive.read(GENERATORS))
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"{path} is no file of save_run, or was damaged after it had been written") from error
    np.random.set_state(generators["numpy"])
    th.set_rng_state(generators["torch"])
    if generators["own"] is not None:
        vars(model)["_rng"] = generators["own"]
    return model


def _begins_a_run(path: str | os.PathLike[str]) -> bool:
    with open(path, "rb") as file:
        return CLASSES.encode() in file.read(100)


def _with_statistics(
    algorithm: type[BaseAlgorithm], archive: zipfile.ZipFile | None, env: GymEnv | str | None, path: str | os.PathLike[str]
) -> VecEnv | None:
    """The environment with the saved normalisation around it."""
    if env is None:
        return None
    wrapped = algorithm._wrap_env(maybe_make_env(env, 0))
    if unwrap_vec_normalize(wrapped) is not None:
        raise DataError("Give the environment without VecNormalize: its statistics come from the file")
    if archive is None:
        return wrapped
    normalizer: VecNormalize = pickle.loads(archive.read(NORMALIZATION))
    # it keeps its spaces: whatever is beneath would be taken for what it was
    if normalizer.action_space != wrapped.action_space:
        raise _other_environment(path, "actions", normalizer.action_space, wrapped.action_space)
    try:
        normalizer.set_venv(wrapped)
    except AssertionError as error:
        seen = normalizer.observation_space, wrapped.observation_space
        raise _other_environment(path, "observations", *seen) from error
    return normalizer


def _other_environment(path: str | os.PathLike[str], what: str, saved: object, given: object) -> DataError:
    return DataError(
        f"{path} holds a run in another environment: its {what} are {saved}, those of the given one {given}. Give the "
        "environment that the run began in"
    )


def _loaded(
    algorithm: type[Algorithm], archive: zipfile.ZipFile, env: VecEnv | None, path: str | os.PathLike[str], kwargs: Any
) -> Algorithm:
    """The model, which fits its environment."""
    try:
        model = algorithm.load(io.BytesIO(archive.read(MODEL)), env, **kwargs)
    except ValueError as error:
        if "spaces do not match" not in str(error):
            raise
        raise DataError(
            f"{path} holds a run in another environment: {error}. Give the environment that the run began in"
        ) from error
    noise = getattr(model, "action_noise", None)
    if isinstance(noise, VectorizedActionNoise) and noise.n_envs != model.n_envs:
        vars(model)["action_noise"] = noise.base_noise  # learn makes as many of it as there are environments
    return model


def _fit_to_environments(model: OffPolicyAlgorithm, path: str | os.PathLike[str]) -> None:
    """Deal out what was kept to as many environments as there are now, whose episodes begin anew."""
    buffer = model.replay_buffer
    assert buffer is not None
    if buffer.n_envs != model.n_envs:
        if type(buffer) not in (ReplayBuffer, DictReplayBuffer) or buffer.optimize_memory_usage:
            kind = type(buffer).__name__ + (" with optimize_memory_usage" if buffer.optimize_memory_usage else "")
            raise DataError(
                f"{path} holds steps of {buffer.n_envs} environments, which a {kind} cannot deal out to {model.n_envs}: give "
                f"{buffer.n_envs}"
            )
        model.replay_buffer = deal_out(buffer, model.n_envs)
        model.replay_buffer.handle_timeout_termination = buffer.handle_timeout_termination
    elif buffer.size() and (isinstance(buffer, NStepReplayBuffer) or buffer.optimize_memory_usage):
        # these read on to the next row, which will be of another episode
        going_on = buffer.dones[buffer.pos - 1] == 0
        buffer.timeouts[buffer.pos - 1, going_on] = float(buffer.handle_timeout_termination)
        buffer.dones[buffer.pos - 1] = 1.0


class SaveRun(BaseCallback):
    """
    Save a run while it learns, between rollouts.

    :param path: of the file, see ``save_run``
    :param every: real steps between two savings, at least
    :param verbose: 1 tells of each
    :raises ValueError: if ``every`` is below 1
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1000, verbose: int = 0) -> None:
        super().__init__(verbose)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path, self.every, self.last = path, every, 0

    def _on_training_start(self) -> None:
        self.last = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self.last >= self.every:
            self._save()

    def _on_training_end(self) -> None:
        self._save()

    def _save(self) -> None:
        save_run(self.model, self.path)
        self.last = self.model.num_timesteps
        if self.verbose >= 1:
            print(f"Saved {self.path} after {self.last} steps")
