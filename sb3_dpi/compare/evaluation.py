"""When and how a run is evaluated: the same for every algorithm.

Evaluations are due at fixed numbers of environment steps, whatever the budget: every ``eval_every`` steps at first, later 20
times per doubling, so that a threshold is located within a few percent wherever it is reached. An evaluation takes place at
the first rollout start at or after its point, so that no rollout is interrupted; one more follows the end of training.
An episode that does not end is cut after the steps of the time limit, or ``LONGEST_EPISODE``, whichever are more: the
evaluation itself counts them, for a wrapper may hide an end.
It uses the deterministic policy, raw returns, an environment of its own and reset seeds of its own: those of point number k
of seed s are the same for every algorithm.
"""

import os
import sys
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, sync_envs_normalization

from sb3_dpi.common.environments import LONGEST_EPISODE
from sb3_dpi.compare.build import environment_arguments, make_env
from sb3_dpi.compare.types import Curve, RunConfig
from sb3_dpi.mpc import MPC
from sb3_dpi.zoo.environments import Bounded, longest_episode

EVAL_SEED_OFFSET = 1_000_000
EVAL_SEEDS_PER_RUN = 100_000
POINTS_PER_DOUBLING = 20
POLICY_METHODS = ("_predict", "extract_features", "get_distribution", "_get_action_dist_from_latent")
ACTOR_METHODS = ("forward", "_predict", "extract_features", "get_action_dist_params")
KNOWN = ("stable_baselines3", "sb3_contrib", "sb3_dpi")

Report = Callable[[int, float | None], None]
"""Called with the environment steps so far and the mean return of the last evaluation (None before the first)"""
Act = Callable[[np.ndarray], np.ndarray]


def evaluation_points(every: int, n_timesteps: int) -> list[int]:
    """
    List the environment steps at which evaluations are due: they do not depend on the budget, which only ends the list.

    :param every: Steps between the first ``2 * POINTS_PER_DOUBLING`` points; the distance then doubles every
        ``POINTS_PER_DOUBLING`` points: with 250, every 250 up to 10,000, every 500 up to 20,000, every 1000 up to 40,000
    :param n_timesteps: Budget; the evaluation at its end comes on top
    :return: Increasing, below ``n_timesteps``
    """
    points, last, distance = [], every, every
    while last < n_timesteps:
        points.append(last)
        if len(points) >= 2 * POINTS_PER_DOUBLING and len(points) % POINTS_PER_DOUBLING == 0:
            distance *= 2
        last += distance
    return points


def _is_known(policy: BasePolicy) -> bool:
    """Tell whether nothing on the way from observation to action was written outside the libraries that are known here."""
    objects: list[tuple[Any, tuple[str, ...]]] = [(policy, POLICY_METHODS)]
    if hasattr(policy, "actor"):
        objects.append((policy.actor, ACTOR_METHODS))
    methods = [getattr(type(owner), name, None) for owner, names in objects for name in names]
    return all(method is None or method.__module__.partition(".")[0] in KNOWN for method in methods)


def lean_actor(model: BaseAlgorithm) -> Act | None:
    """
    Make a function that does what ``model.predict(deterministic=True)`` does without the overhead around the networks; None
    for a policy that is not one of SB3's for vectors. The networks stay in torch: the actions are the same to the last bit.
    """
    policy = model.policy
    plain = type(model).predict is BaseAlgorithm.predict and type(policy).predict is BasePolicy.predict and _is_known(policy)
    space, actions = model.observation_space, model.action_space
    if not plain or not isinstance(space, spaces.Box) or is_image_space(space) or not isinstance(actions, spaces.Box):
        return None
    if isinstance(policy, ActorCriticPolicy) and type(policy.mlp_extractor) is MlpExtractor:
        modules: list[Any] = [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]
        distribution = policy.action_dist
        squashed = isinstance(distribution, StateDependentNoiseDistribution) and distribution.bijector is not None
    elif hasattr(policy, "actor") and hasattr(policy.actor, "mu"):
        actor: Any = policy.actor
        modules = [actor.features_extractor, *([actor.latent_pi] if hasattr(actor, "latent_pi") else []), actor.mu]
        squashed = hasattr(actor, "latent_pi")
    else:
        return None

    def act(observations: np.ndarray) -> np.ndarray:
        with th.no_grad():
            hidden = th.as_tensor(observations, device=model.device).float()
            for module in modules:
                hidden = module(hidden)
            mean = (hidden.tanh() if squashed else hidden).cpu().numpy().reshape(-1, *actions.shape)
        if policy.squash_output:
            return policy.unscale_action(np.clip(mean, -1.0, 1.0))
        clipped: np.ndarray = np.clip(mean, actions.low, actions.high)
        return clipped

    return act


@dataclass
class Episodes:
    """The episodes of one evaluation, in the order of their ends."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    n_cut: int = 0


def _plain_envs(env: VecEnv) -> list[Any] | None:
    """Find the single environments where stepping them one by one is what ``env.step`` does."""
    inner = env.venv if type(env) is VecNormalize else env
    if type(inner) is not DummyVecEnv or not all(type(single) is Monitor for single in inner.envs):
        return None
    return inner.envs


def _add(episodes: Episodes, info: dict[str, Any]) -> None:
    episodes.returns.append(info["episode"]["r"])
    episodes.lengths.append(info["episode"]["l"])
    episodes.n_cut += "cut" in info
    if "is_success" in info:
        episodes.successes.append(bool(info["is_success"]))


def run_episodes(model: BaseAlgorithm, env: VecEnv, seed: int, longest: int = LONGEST_EPISODE) -> Episodes:
    """
    Run one episode in each environment; the result is that of ``evaluate_policy``, to the last bit.

    Environment i starts from the reset seed ``seed + i``. What has not ended after ``longest`` steps is cut.

    Environments whose episode has ended are not stepped any more, and the networks are called without the overhead around
    them, where it has been seen on the first observations that this gives the same actions.
    """
    env.seed(seed)
    model.policy.set_training_mode(False)
    act, envs = lean_actor(model), _plain_envs(env)
    if act is not None and envs is not None:
        observations = env.reset()
        assert isinstance(observations, np.ndarray)
        if np.array_equal(act(observations), model.predict(observations, deterministic=True)[0]):
            return _run_lean(act, envs, env, observations, longest)
        env.seed(seed)
    episodes = Episodes()

    def note_end(locals_: dict[str, Any], _globals: dict[str, Any]) -> None:
        if locals_["done"] and "episode" in locals_["info"]:
            _add(episodes, locals_["info"])

    with model.reading(env) if isinstance(model, MPC) else nullcontext():
        evaluate_policy(model, Bounded(env, longest), env.num_envs, callback=note_end)
    return episodes


def _run_lean(act: Act, envs: list[Any], env: VecEnv, observations: np.ndarray, longest: int) -> Episodes:
    episodes, normalize = Episodes(), env if isinstance(env, VecNormalize) else None
    # Without normalization both names are one array, and the environments write what the networks read
    raw = observations if normalize is None else normalize.get_original_obs()
    assert isinstance(raw, np.ndarray)
    living = list(range(len(envs)))
    while living:
        # Rows of ended episodes stay: the sums of a matrix product depend on its shape
        actions = act(observations)
        for i in living.copy():
            raw[i], _, terminated, truncated, info = envs[i].step(actions[i])
            if not (terminated or truncated) and len(envs[i].rewards) >= longest:
                info |= {"episode": {"r": round(sum(envs[i].rewards), 6), "l": len(envs[i].rewards)}, "cut": True}
            if terminated or truncated or "cut" in info:
                living.remove(i)
                _add(episodes, info)
        if normalize is not None:
            normalized = normalize.normalize_obs(raw)
            assert isinstance(normalized, np.ndarray)
            observations = normalized
    return episodes


class EvaluationCallback(BaseCallback):
    """
    Evaluate by the protocol of the comparison, store the raw returns, keep the best model, tell the progress at rollout
    starts.
    """

    def __init__(self, config: RunConfig, folder: Path, report: Report) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.report = report
        self.longest = longest_episode(config.env_id, environment_arguments(config))
        self.points = evaluation_points(config.eval_every, config.n_timesteps)
        self.timesteps: list[int] = []
        self.episodes: list[Episodes] = []
        self.training_seconds: list[float] = []
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.last_mean: float | None = None
        self.best_mean = -np.inf
        self.has_cut = False
        self._n_due = 0

    def _init_callback(self) -> None:
        # The training environment may have been wrapped further by the model (images): wrap this one the same way
        self.env = self.model._wrap_env(make_env(self.config, evaluation=True), monitor_wrapper=False)
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        n_due = bisect_right(self.points, self.model.num_timesteps)
        if n_due > self._n_due:
            self._n_due = n_due
            self.evaluate(n_due)
        self.report(self.model.num_timesteps, self.last_mean)

    def evaluate(self, number: int | None = None) -> None:
        """
        Run the evaluation of a point, from 1, or that after the end of training (None) and write it, on a clock of its own.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        self.training_seconds.append(wall - self._start - self.seconds)
        number = len(self.points) + 1 if number is None else number
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.env)
        first = EVAL_SEED_OFFSET + EVAL_SEEDS_PER_RUN * self.config.seed + self.config.n_eval_episodes * number
        self.episodes.append(run_episodes(self.model, self.env, first, self.longest))
        self._tell_cuts(self.episodes[-1].n_cut)
        self.timesteps.append(self.model.num_timesteps)
        self.last_mean = float(np.mean(self.episodes[-1].returns))
        if self.last_mean > self.best_mean:
            self.best_mean = self.last_mean
            self.model.save(self.folder / "best_model")
        self._write()
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    def _tell_cuts(self, n_cut: int) -> None:
        """An episode that does not end is cut; the log says so once."""
        if n_cut and not self.has_cut:
            self.has_cut = True
            print(
                f"{n_cut} of {self.env.num_envs} episodes of an evaluation did not end and were cut after {self.longest:,} "
                "steps; max_episode_steps among the arguments of the environment sets a time limit",
                file=sys.stderr,
            )

    def curve(self) -> Curve:
        """Collect the evaluations so far."""
        told = all(len(episodes.successes) == len(episodes.returns) for episodes in self.episodes)
        return Curve(
            timesteps=np.array(self.timesteps),
            results=np.array([episodes.returns for episodes in self.episodes]),
            lengths=np.array([episodes.lengths for episodes in self.episodes]),
            successes=np.array([episodes.successes for episodes in self.episodes]) if told else None,
            wall_seconds=np.array(self.training_seconds),
        )

    def _write(self) -> None:
        path = self.folder / "evaluations.npz"
        unfinished = self.folder / "evaluations.tmp.npz"
        arrays: dict[str, Any] = dict(self.curve().arrays())
        np.savez_compressed(unfinished, **arrays)
        os.replace(unfinished, path)
