"""The registry of algorithms, over which the tests of every concern run. A new class joins by one line of ``ALGORITHMS``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch as th
from dummy_envs import CONDITIONS, HORIZON, ITERATION, POINT_MASS_LIMIT, SAMPLES, PointMass, limited, pushed
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr

from sb3_dpi import DPI, MDGPS, MPC, AggreVaTeDOC, DAgger, DualAC, ExIt
from sb3_dpi.common.asking import ask
from sb3_dpi.common.collector import TrajectoryCollector
from sb3_dpi.common.replay_memory import ReplayMemory
from sb3_dpi.world_model.types import Transitions, stretch_ends

Model = Any
"""Of any algorithm; what only some of them have is behind a fact of the registry"""

# ---------------------------------------------------------------------- small models


def small_mdgps(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> MDGPS:
    """:return: a model whose iteration takes ``ITERATION`` steps of all environments, and milliseconds"""
    options: dict[str, Any] = {
        "horizon": HORIZON,
        "n_conditions": CONDITIONS,
        "samples_per_condition": SAMPLES,
        "replay": 0,
        "imitation_steps": 3,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return MDGPS(policy, PointMass() if env is None else env, **{**options, **kwargs})


def small_aggrevated_oc(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> AggreVaTeDOC:
    """:return: likewise"""
    options: dict[str, Any] = {
        "horizon": HORIZON,
        "n_conditions": CONDITIONS,
        "samples_per_condition": SAMPLES,
        "conditions": "fresh",
        "replay": 0,
        "n_critic_updates": 2,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return AggreVaTeDOC(policy, PointMass() if env is None else env, **{**options, **kwargs})


def small_dpi(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> DPI:
    """:return: likewise; the first iteration follows the warm-up, which takes as many steps"""
    options: dict[str, Any] = {
        "train_freq": ITERATION // getattr(env, "num_envs", 1),
        "learning_starts": ITERATION,
        "batch_size": 16,
        "imagination": {"n_windows": 10, "horizon": 2, "n_rollout_steps": 50},
        "update_to_data": 0.02,
        "world_model": {"width": 16},
        "policy_kwargs": {"net_arch": {"pi": [16, 16], "qf": [16, 16]}},
        "seed": 0,
        "device": "cpu",
    }
    for name in ("imagination", "world_model", "policy_kwargs"):  # what is given joins what is small
        kwargs[name] = {**options[name], **kwargs.get(name, {})}
    return DPI(policy, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


def small_dual_ac(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> DualAC:
    """:return: likewise"""
    options: dict[str, Any] = {
        "n_steps": ITERATION // getattr(env, "num_envs", 1),
        "batch_size": 20,
        "n_critic_updates": 2,
        "policy_kwargs": {"features_extractor_kwargs": {"n_features": 10}} if policy == "RBFPolicy" else {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return DualAC(policy, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


class Linear:
    """
    An expert that pulls all that is observed to zero.

    :param env: whose actions it takes; it undoes the units that this says it observes in
    """

    def __init__(self, policy: str, env: Any, seed: int | None) -> None:
        self.space = env.action_space
        self.scale, self.offset = ((ask(env, name) or [default])[0] for name, default in (("scale", 1.0), ("offset", 0.0)))

    def predict(self, obs: Any, state: Any = None, **_: Any) -> tuple[np.ndarray, Any]:
        """:return: actions within their bounds, or numbers of Discrete ones"""
        parts = [part.reshape(len(part), -1) for part in (obs.values() if isinstance(obs, dict) else (obs,))]
        pull = -np.tanh(2.0 * np.sum(np.concatenate(parts, 1).astype(np.float64) / self.scale - self.offset, 1))
        if isinstance(self.space, spaces.Discrete):
            return (pull > 0.0).astype(int), state
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        pull = pull.reshape(-1, *(1,) * len(low.shape))
        actions = low + 0.5 * (pull + 1.0) * (high - low)
        return (actions if self.space.dtype.kind == "f" else np.round(actions)).astype(self.space.dtype), state


def small_dagger(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> DAgger:
    """:return: likewise"""
    options: dict[str, Any] = {
        "expert": {"algo": "algorithms:Linear"},
        "train_freq": ITERATION // getattr(env, "num_envs", 1),
        "buffer_size": 1000,
        "batch_size": 16,
        "gradient_steps": 4,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return DAgger(policy, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


def small_exit(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> ExIt:
    """:return: likewise; what is pushed by any force is pushed by few"""
    env = limited(POINT_MASS_LIMIT) if env is None else env
    options: dict[str, Any] = {
        "train_freq": ITERATION // getattr(env, "num_envs", 1),
        "learning_starts": 0,
        "gradient_steps": 1,
        "batch_size": 16,
        "buffer_size": 1000,
        "n_simulations": 2,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return ExIt(policy, env if isinstance(env, str) else pushed(env), **{**options, **kwargs})


def small_mpc(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> MPC:
    """:return: likewise, with a small planner in a small ensemble; the first fit follows the warm-up"""
    options: dict[str, Any] = {
        "horizon": 2,
        "replan_every": 2,
        "train_freq": ITERATION // getattr(env, "num_envs", 1),
        "learning_starts": ITERATION,
        "buffer_size": 1000,
        "seed": 0,
        "device": "cpu",
    }
    kwargs["world_model"] = {"n_members": 2, "width": 8, "gradient_steps": 0.2, **kwargs.get("world_model", {})}
    planner = {"kind": "random", "n_samples": 4} if policy == "MlpPolicy" else policy
    return MPC(planner, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


def small_ppo(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> PPO:
    """:return: likewise, of Stable-Baselines3"""
    options: dict[str, Any] = {
        "n_steps": ITERATION // getattr(env, "num_envs", 1),
        "batch_size": 20,
        "n_epochs": 2,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return PPO(policy, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


def small_sac(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> SAC:
    """:return: likewise"""
    options: dict[str, Any] = {
        "train_freq": ITERATION // getattr(env, "num_envs", 1),
        "learning_starts": ITERATION // 2,
        "gradient_steps": 2,
        "batch_size": 16,
        "buffer_size": 1000,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
    }
    return SAC(policy, limited(POINT_MASS_LIMIT) if env is None else env, **{**options, **kwargs})


# ---------------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Make:
    """An algorithm: called, it makes a small model. The rest are facts by which tests differ."""

    algorithm: type[Model]
    small: Callable[..., Model]
    from_conditions: bool = False
    """samples trajectories that are aligned in time, from initial conditions, and plans on the vectors of the observation"""
    squashes: bool = False
    """actions keep within their bounds by a tanh; otherwise they are cut off"""
    keeps_originals: bool = True
    """learns from observations and rewards that VecNormalize has not touched"""
    plans: bool = False
    """plans when it acts: its policy has no network"""
    any_space: bool = False
    """takes actions and observations of all kinds, images too"""
    takes_discrete: bool = False
    """takes Discrete actions beside Boxes, no others"""
    acts_as_predicted: bool = False
    """training steps are taken without the policy's noise"""
    discrete: bool = False
    """takes Discrete actions alone"""

    def fit(self, env: Any) -> Any:
        """:return: an environment that it can act in, of one with a Box of actions"""
        return pushed(env) if self.discrete else env

    def __call__(self, env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> Model:
        return self.small(env, policy, **kwargs)

    def __str__(self) -> str:
        return self.algorithm.__name__


ALGORITHMS = (
    Make(MDGPS, small_mdgps, from_conditions=True),
    Make(AggreVaTeDOC, small_aggrevated_oc, from_conditions=True),
    Make(DPI, small_dpi, squashes=True),
    Make(DualAC, small_dual_ac, keeps_originals=False, any_space=True),
    Make(DAgger, small_dagger, takes_discrete=True, acts_as_predicted=True),
    Make(MPC, small_mpc, plans=True),
)
DISCRETE = (Make(ExIt, small_exit, discrete=True),)
"""Those that act by numbers: tests of forces are not for them"""
EVERY = (*ALGORITHMS, *DISCRETE)


def those(**facts: bool) -> tuple[Make, ...]:
    """:return: the algorithms with these facts"""
    return tuple(make for make in ALGORITHMS if all(getattr(make, name) == fact for name, fact in facts.items()))


def every(**facts: bool) -> pytest.MarkDecorator:
    """:return: for tests of ``make``, over the algorithms with these facts"""
    return pytest.mark.parametrize("make", those(**facts), ids=str)


every_algorithm = every()
every_action = pytest.mark.parametrize("make", EVERY, ids=str)
"""over every algorithm, those of Discrete actions too: ``make.fit(env)`` is what each can act in"""
every_network = pytest.mark.parametrize("make", [make for make in EVERY if not make.plans], ids=str)
"""likewise, but for those that have no network that acts"""

REFERENCES = (
    Make(PPO, small_ppo, keeps_originals=False, any_space=True),
    Make(SAC, small_sac, squashes=True, any_space=True),
)
"""What works with these works with ours: tests over both show that the tests themselves are right"""

with_references = pytest.mark.parametrize("make", (*ALGORITHMS, *REFERENCES), ids=str)
"""over every algorithm, and PPO and SAC beside them"""
with_networks = pytest.mark.parametrize("make", (*those(plans=False), *REFERENCES), ids=str)
"""likewise, without what plans when it acts"""
off_policy = pytest.mark.parametrize(
    "make", [make for make in (*ALGORITHMS, *REFERENCES) if issubclass(make.algorithm, OffPolicyAlgorithm)], ids=str
)
on_policy = pytest.mark.parametrize(
    "make", [make for make in (*ALGORITHMS, *REFERENCES) if issubclass(make.algorithm, OnPolicyAlgorithm)], ids=str
)


def called(*algorithms: type[Model]) -> tuple[Make, ...]:
    """:return: these algorithms, for tables of what only they have"""
    return tuple(make for make in ALGORITHMS if make.algorithm in algorithms)


# ---------------------------------------------------------------------- what models have learned and done


def modules(model: Model) -> list[th.nn.Module]:
    """:return: all networks, those that are saved"""
    names, _ = model._get_torch_save_params()
    return [part for part in (recursive_getattr(model, name) for name in names) if isinstance(part, th.nn.Module)]


def parameters(model: Model) -> float:
    """:return: a number that changes if anything learned does"""
    return float(sum(parameter.detach().double().sum() for module in modules(model) for parameter in module.parameters()))


def iterations(model: Model) -> int:
    """:return: how often the model has learned"""
    return model.n_iterations if hasattr(model, "n_iterations") else model._n_updates


def logged(model: Model, key: str) -> float:
    """:return: a scalar of the last iteration"""
    return float(model.logger.name_to_value[key])


def buffer(model: Model) -> Any:
    """:return: what observations are kept in"""
    return model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else model.rollout_buffer


def executed(model: Model) -> np.ndarray:
    """:return: actions of the last iteration in units of the bounds, in the order of time, of one environment, ``[n, du]``"""
    if isinstance(model, TrajectoryCollector):
        actions = model.rollout_buffer.trajectories().executed_actions
        return np.swapaxes(actions, 0, 1).reshape(-1, actions.shape[-1])  # trajectory i has condition i mod M
    if isinstance(model, OffPolicyAlgorithm):
        assert model.replay_buffer is not None
        return model.replay_buffer.actions[max(model.replay_buffer.pos - ITERATION, 0) : model.replay_buffer.pos, 0]
    return np.clip(model.rollout_buffer.actions.reshape(-1, model.rollout_buffer.actions.shape[-1]), -1.0, 1.0)


def transitions(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """:return: states, actions in units of the bounds, next states and rewards that it learns from, ``[n, ...]``"""
    if isinstance(model, TrajectoryCollector):
        sampled = model.rollout_buffer.trajectories()
        alive, states = sampled.alive, sampled.states
        return states[:, :, :-1][alive], sampled.executed_actions[alive], states[:, :, 1:][alive], sampled.rewards[alive]
    data, _ = kept(model)
    return data.states, data.actions, data.next_states, data.rewards


def check_transitions(model: Model) -> None:
    """Every transition, those that end an episode included, obeys the point mass and its rewards."""
    x, u, following, rewards = transitions(model)
    assert len(x) > 0
    np.testing.assert_allclose(following, x + 0.1 * np.stack([x[:, 1], 2.0 * u[:, 0]], -1), atol=2e-5)
    np.testing.assert_allclose(rewards, -np.sum(x**2, -1) - 0.1 * u[:, 0] ** 2, atol=1e-4)


def kept(model: Model) -> tuple[Transitions, np.ndarray]:
    """:return: all in the replay buffer, of one environment after the other, and where episodes end"""
    memory = model.memory if hasattr(model, "memory") else ReplayMemory(model.replay_buffer, flat)
    rows = memory.newest(len(memory))
    return memory.take(rows), stretch_ends(memory, rows)


def flat(observations: Any) -> np.ndarray:
    """:return: ``[n, do]``, the keys of dictionaries in their order"""
    parts = observations.values() if isinstance(observations, dict) else (observations,)
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1).astype(np.float64)


def planned(model: MDGPS | AggreVaTeDOC) -> np.ndarray:
    """:return: which samples of the last iteration are alive and planned for, ``[M, N, T]``"""
    return model._planned(model.rollout_buffer.trajectories())
