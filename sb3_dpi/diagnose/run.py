"""A look inside, from beginning to end."""

from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.common.environments import Environment
from sb3_dpi.diagnose.film import film
from sb3_dpi.diagnose.measure import Findings, measure, untouched_randomness
from sb3_dpi.diagnose.page import write
from sb3_dpi.diagnose.subject import DiagnoseError, Subject, as_subject


def diagnose(
    model: BaseAlgorithm | BasePolicy | Subject | str | Path,
    env: Environment,
    out: str | Path | None = None,
    n_episodes: int = 10,
    seed: int = 0,
    vec_normalize: VecNormalize | str | Path | None = None,
) -> Findings:
    """
    Look inside a model: play real episodes, and compare them with what its model, critic and expert say.

    Nothing is learned, and the model stays as it is.

    :param model: a model, a policy, or the path of a saved model
    :param env: id, environment or function that makes one; not the training's, for its episode is interrupted
    :param out: folder for ``index.html`` and a csv file for each table; None writes nothing
    :param n_episodes: real episodes, of each kind; usual: 5 to 20
    :param seed: of resets and noise
    :param vec_normalize: VecNormalize of the training, or the path of its statistics; None: that of the model's environment
    :return: the tables (``tables``) and the key figures (``keys``)
    :raises DiagnoseError: if there is no policy, or it does not fit the environment
    """
    if n_episodes < 1:
        raise DiagnoseError(f"n_episodes must be at least 1, got {n_episodes}")
    subject = as_subject(model, vec_normalize)
    findings = measure(subject, env, n_episodes, seed)
    if out is not None:
        with untouched_randomness(seed):
            taken = film(subject, env, seed, int(findings.tables["episodes"]["steps"].iloc[0]))
        if taken.note:
            findings.notes["film"] = taken.note
        write(findings, taken, _name(env), Path(out))
    return findings


def _name(environment: Environment) -> str:
    if isinstance(environment, str):
        return environment
    if isinstance(environment, gym.Env):
        return environment.spec.id if environment.spec is not None else type(environment.unwrapped).__name__
    return getattr(environment, "__name__", "the environment").strip("<>")
