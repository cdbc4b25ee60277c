"""The other process of ``same_numbers.py``: it runs short trainings with the ``sb3_dpi`` that it finds, and writes numbers."""

import inspect
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from former_words import LEFT_OUT, put
from gymnasium import spaces
from number_cases import CASES, REMOVED, REMOVED_VALUES, RENAMED, SMALL, STEPS, TIME_LIMIT, Case, Outcome
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

import sb3_dpi

FIXED_OBSERVATIONS = 16
EPISODES = 2


class GoneError(Exception):
    """This tree has not what a case is about."""


class AsDict(gym.ObservationWrapper[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """
    The first observed number and the others, apart.

    :param env: observes vectors
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        low, high = space.low, space.high
        self.observation_space = spaces.Dict({"first": spaces.Box(low[:1], high[:1]), "rest": spaces.Box(low[1:], high[1:])})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """:return: the parts"""
        return {"first": observation[:1], "rest": observation[1:]}


def translate(algorithm: str, arguments: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """
    Say arguments in the words of a tree.

    :param algorithm: whose constructor it is
    :param arguments: in the words of the cases
    :param known: names of the constructor's arguments in this tree
    :return: arguments that it knows
    :raises GoneError: if one is known to be gone
    :raises ValueError: if the tables of ``number_cases`` do not know one either
    """
    renamed = RENAMED.get(algorithm, {})
    plain = {new.name: old for old, new in renamed.items() if new.value is None}
    result: dict[str, Any] = {}
    for name, value in arguments.items():
        word = name
        while word in renamed and (word not in known or renamed[word].beside in known):
            value = value if (change := renamed[word].value) is None else change(value)
            word = renamed[word].name
        if word.partition(".")[0] not in known and plain.get(word) in known:
            word = plain[word]  # a case in newer words
        root, _, key = word.partition(".")
        if value is LEFT_OUT:
            continue
        if root in known:
            put(result, root, key, value)
        elif name in REMOVED.get(algorithm, ()):
            raise GoneError(f"{algorithm} has no argument {name}")
        elif root:
            raise ValueError(f"{algorithm} has no argument {root}: add a row for {name} to former_words.py")
    return result


def make_env(case: Case) -> VecEnv:
    """
    Build what a case learns from.

    :param case: which
    :return: with its wrappers, not yet seeded
    """
    made = [lambda kwargs=kwargs: Monitor(make_one(case, dict(kwargs))) for kwargs in case.env_kwargs]
    env: VecEnv = DummyVecEnv(made)  # type: ignore[arg-type]
    return VecNormalize(env) if "normalize" in case.wrappers else env


def make_one(case: Case, kwargs: dict[str, Any]) -> gym.Env:
    """
    Build one copy.

    :param case: which
    :param kwargs: of the environment
    :return: with a time limit
    """
    env = gym.make(case.env, max_episode_steps=TIME_LIMIT, **kwargs)
    return AsDict(env) if "dict" in case.wrappers else env


def make_model(case: Case) -> BaseAlgorithm:
    """
    Build what learns.

    :param case: which
    :return: untrained
    :raises GoneError: if this tree has not what it needs
    """
    algorithm = getattr(sb3_dpi, case.algorithm, None)
    if algorithm is None:
        raise GoneError(f"there is no {case.algorithm}")
    arguments = {**SMALL[case.algorithm], "seed": 0, "device": "cpu", **case.arguments}
    known = set(inspect.signature(algorithm.__init__).parameters) - {"self"}
    translated = translate(case.algorithm, arguments, known)
    try:
        return algorithm(case.policy, make_env(case), **translated)
    except (TypeError, ValueError) as error:
        for name, values in REMOVED_VALUES.get(case.algorithm, {}).items():
            if name in case.arguments and case.arguments[name] in values:
                raise GoneError(f"{case.algorithm} refuses {name}={case.arguments[name]!r}") from error
        raise


def train(case: Case) -> BaseAlgorithm:
    """
    Learn, and where the case says so save, load and continue.

    :param case: which
    :return: the trained model
    """
    model = make_model(case)
    steps = case.steps or STEPS[case.algorithm]
    model.learn(steps)
    if not case.continued:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.zip")
        again = type(model).load(f"{folder}/model.zip", env=model.get_env(), device="cpu")
        if hasattr(model, "save_replay_buffer"):
            model.save_replay_buffer(f"{folder}/buffer.pkl")
            again.load_replay_buffer(f"{folder}/buffer.pkl")  # type: ignore[attr-defined]
    return again.learn(steps, reset_num_timesteps=False)


def flatten(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """
    List the tensors of a state.

    :param value: of ``get_parameters()``
    :param name: what it is called so far
    :return: names and copies
    """
    if isinstance(value, th.Tensor):
        yield name, value.detach().cpu().numpy().copy()
    elif isinstance(value, np.ndarray):
        yield name, value.copy()
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from flatten(part, f"{name}/{key}")


def fixed_observations(space: spaces.Space, rng: np.random.Generator) -> Any:
    """
    Draw what ``predict`` is asked about.

    :param space: of observations: a box, or a dictionary of boxes
    :param rng: draws standard normal numbers, whatever the bounds
    :return: ``FIXED_OBSERVATIONS`` of them
    """
    if isinstance(space, spaces.Dict):
        return {key: fixed_observations(part, rng) for key, part in space.spaces.items()}
    assert space.shape is not None
    return rng.standard_normal((FIXED_OBSERVATIONS, *space.shape)).astype(np.float32)


def play(model: BaseAlgorithm, case: Case, seed: int) -> float:
    """
    Play an episode without noise.

    :param model: acts
    :param case: names the environment
    :param seed: of the reset
    :return: its undiscounted return
    """
    env, normalizer = make_one(case, dict(case.env_kwargs[0])), model.get_vec_normalize_env()
    obs, _ = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        action, _ = model.predict(normalizer.normalize_obs(obs) if normalizer else obs, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
    env.close()
    return total


def measure(case: Case) -> dict[str, np.ndarray]:
    """
    Train, and write down what came of it.

    :param case: which
    :return: steps taken, all learned tensors, actions and returns
    """
    set_random_seed(0)
    model = train(case)
    values = {"steps": np.array(model.num_timesteps)}
    for name, state in model.get_parameters().items():
        values.update(flatten(state, name))
    observations = fixed_observations(model.observation_space, np.random.default_rng(0))
    values["actions"] = model.predict(observations, deterministic=True)[0]
    values["returns"] = np.array([play(model, case, seed) for seed in range(EPISODES)])
    return values


def run(case: Case) -> Outcome:
    """
    Run a case, whatever happens.

    :param case: which
    :return: its numbers, or what went wrong
    """
    start = time.perf_counter()
    try:
        outcome = Outcome("ran", values=measure(case))
    except GoneError as error:
        outcome = Outcome("gone", str(error))
    except Exception as error:  # the other cases go on
        outcome = Outcome("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
    outcome.seconds = time.perf_counter() - start
    return outcome


def main(tree: Path, folder: Path, names: list[str]) -> None:
    """
    Run cases one after the other.

    :param tree: where ``sb3_dpi`` must come from
    :param folder: for the outcomes, a file a case
    :param names: of cases
    """
    found = Path(sb3_dpi.__file__).resolve()
    if not found.is_relative_to(tree.resolve()):
        raise SystemExit(f"sb3_dpi comes from {found.parent}, not from {tree}: does PYTHONPATH begin with it?")
    th.set_num_threads(1)
    for name in names:
        run(CASES[name]).save(folder / f"{name}.pkl")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
