"""The registry of algorithms, over which the tests of every concern run. A new class joins by one line of ``ALGORITHMS``."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch as th
from dummy_envs import CONDITIONS, HORIZON, ITERATION, POINT_MASS_LIMIT, SAMPLES, PointMass, Pushed, limited, pushed
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


CHAPTERS = frozenset({"episodes", "actions"})
"""Of a look inside any policy of continuous actions"""
PREDICTED = CHAPTERS | {"prediction", "calibration", "one_step", "returns", "ahead", "kl"}
"""Of one that knows a model of the environment"""


@dataclass(frozen=True)
class Make:
    """An algorithm: called, it makes a small model. The rest are facts by which tests differ."""

    algorithm: type[Model]
    small: Callable[..., Model]
    policy: Any = "MlpPolicy"
    """first argument of the class, where nothing is chosen"""
    first_steps: int = 1
    """of a model without further argument that is asked for one step: as few as an iteration has, or a part of a warm-up"""
    chapters: frozenset[str] = CHAPTERS
    """tables of a look inside"""
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
    searches: bool = False
    """plans in copies of its environments: those must be copied, and what stands above them must be known"""
    imitates: bool = False
    """learns what another says of each state, which logged data do not hold"""
    plain_networks: bool = False
    """its networks are those of Stable-Baselines3: they see the task's units, and nothing without an axis"""

    def fit(self, env: Any) -> Any:
        """:return: an environment that it can act in, of one with a Box of actions"""
        return pushed(env) if self.discrete else env

    def takes(self, argument: str) -> bool:
        """:return: whether the class has an argument of this name"""
        return argument in inspect.signature(self.algorithm.__init__).parameters

    @property
    def off_policy(self) -> bool:
        """Whether it learns from a replay buffer."""
        return issubclass(self.algorithm, OffPolicyAlgorithm)

    @property
    def on_policy(self) -> bool:
        """Whether it is one of Stable-Baselines3's on-policy algorithms."""
        return issubclass(self.algorithm, OnPolicyAlgorithm)

    @property
    def chooses_size(self) -> bool:
        """Whether it chooses how long iterations are, where nobody says."""
        parameters = inspect.signature(self.algorithm.__init__).parameters
        return any(parameters[name].default is None for name in ("n_steps", "train_freq", "horizon") if name in parameters)

    @property
    def leaves_episodes(self) -> bool:
        """Whether it can leave long episodes."""
        return self.takes("early_reset")

    def __call__(self, env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> Model:
        return self.small(env, policy, **kwargs)

    def __str__(self) -> str:
        return self.algorithm.__name__


ALGORITHMS = (
    Make(MDGPS, small_mdgps, first_steps=4, chapters=PREDICTED | {"conditions"}, from_conditions=True),
    Make(
        AggreVaTeDOC, small_aggrevated_oc, first_steps=4, chapters=PREDICTED | {"conditions", "critic"}, from_conditions=True
    ),
    Make(DPI, small_dpi, first_steps=25, chapters=PREDICTED | {"windows", "critic"}, squashes=True),
    Make(DualAC, small_dual_ac, first_steps=2, chapters=CHAPTERS | {"critic"}, keeps_originals=False, any_space=True),
    Make(DAgger, small_dagger, takes_discrete=True, acts_as_predicted=True, imitates=True),
    Make(MPC, small_mpc, policy="iCEM", plans=True),
    Make(
        ExIt,
        small_exit,
        first_steps=64,
        chapters=frozenset({"episodes", "critic"}),
        plain_networks=True,
        discrete=True,
        searches=True,
        imitates=True,
    ),
)
"""The algorithms of this package"""
REFERENCES = (
    Make(PPO, small_ppo, chapters=CHAPTERS | {"critic"}, keeps_originals=False, any_space=True),
    Make(SAC, small_sac, squashes=True, any_space=True),
)
"""What works with these works with ours: tests over both show that the tests themselves are right"""


def those(**facts: Any) -> tuple[Make, ...]:
    """:return: the algorithms with these facts"""
    return tuple(make for make in ALGORITHMS if has(make, facts))


def has(make: Make, facts: dict[str, Any]) -> bool:
    """:return: whether all of these facts are so"""
    return all(getattr(make, name) == fact for name, fact in facts.items())


def every(**facts: Any) -> pytest.MarkDecorator:
    """:return: for tests of ``make``, over the algorithms with these facts"""
    return pytest.mark.parametrize("make", those(**facts), ids=str)


def with_references(**facts: Any) -> pytest.MarkDecorator:
    """:return: likewise, with PPO and SAC beside them"""
    return pytest.mark.parametrize("make", [make for make in (*ALGORITHMS, *REFERENCES) if has(make, facts)], ids=str)


every_algorithm = every()


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


OBSERVATIONS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
"""Of the point mass"""


def predictions(model: Model) -> np.ndarray:
    """:return: deterministic actions at ``OBSERVATIONS``, of a model or a policy"""
    return model.predict(OBSERVATIONS, deterministic=True)[0]


def answers(model: Model, observations: Any) -> np.ndarray:
    """:return: deterministic actions; of numbers, which do not tell small changes, their probabilities"""
    if not isinstance(model.action_space, spaces.Discrete):
        return model.predict(observations, deterministic=True)[0]
    with th.no_grad():
        return model.policy.get_distribution(model.policy.obs_to_tensor(observations)[0]).distribution.probs.numpy()


def executed(model: Model) -> np.ndarray:
    """:return: actions of the last iteration in units of the bounds, in the order of time, of one environment, ``[n, du]``"""
    if isinstance(model, TrajectoryCollector):
        actions = np.clip(model.rollout_buffer.trajectories().actions, -1.0, 1.0)
        return np.swapaxes(actions, 0, 1).reshape(-1, actions.shape[-1])  # trajectory i has condition i mod M
    if isinstance(model, OffPolicyAlgorithm):
        assert model.replay_buffer is not None
        return model.replay_buffer.actions[max(model.replay_buffer.pos - ITERATION, 0) : model.replay_buffer.pos, 0]
    return np.clip(model.rollout_buffer.actions.reshape(-1, model.rollout_buffer.actions.shape[-1]), -1.0, 1.0)


def transitions(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """:return: states, actions in units of the bounds, next states and rewards that it learns from, ``[n, ...]``"""
    if isinstance(model, TrajectoryCollector):
        sampled = model.rollout_buffer.trajectories()
        alive, states, actions = sampled.alive, sampled.states, np.clip(sampled.actions, -1.0, 1.0)
        return states[:, :, :-1][alive], actions[alive], states[:, :, 1:][alive], sampled.rewards[alive]
    data, _ = kept(model)
    return data.states, data.actions, data.next_states, data.rewards


NOT_FINITE_IN_SEARCH = r"Environment \d, after \d+ steps in all: the search met a return of -?(nan|inf).* The model is as"
"""What is said where a copy of the environment shows first what is not finite"""


def check_transitions(model: Model) -> None:
    """Every transition, those that end an episode included, obeys the point mass and its rewards."""
    x, u, following, rewards = transitions(model)
    u = 2.0 * u / (Pushed.N - 1) - 1.0 if isinstance(model.action_space, spaces.Discrete) else u
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
