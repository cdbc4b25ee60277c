"""The value function of a policy on time-aligned trajectories, and the advantages that it gives."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_dpi.common.policies import being_updated
from sb3_dpi.common.saved_models import SavedModel
from sb3_dpi.common.trajectories import Trajectories, map_observations
from sb3_dpi.trajopt.discounting import discounted_sums
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.trajopt.units import varies

Values = TypeVar("Values", np.ndarray, th.Tensor)


def generalized_advantages(
    rewards: FloatArray, values: FloatArray, alive: np.ndarray, terminated: np.ndarray, gamma: float, gae_lambda: float
) -> FloatArray:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16) along the last axis.

    A trajectory that is cut, by the horizon or a time limit, goes on with the value of its last observation; a dead one is
    worth nothing.

    :param rewards: ``[..., T]``
    :param values: ``[..., T + 1]``, that of the observation after the last living step right behind it
    :param alive: the step was taken, ``[..., T]``
    :param terminated: the step ended its episode by death, ``[..., T]``
    :param gamma: discount factor
    :param gae_lambda: trade-off between bias (0) and variance (1)
    :return: ``[..., T]``, zero where not alive
    """
    errors = np.where(alive, rewards + gamma * np.where(terminated, 0.0, values[..., 1:]) - values[..., :-1], 0.0)
    sums = discounted_sums(np.moveaxis(errors, -1, 0), np.moveaxis(terminated | ~alive, -1, 0), gamma * gae_lambda)
    return np.ascontiguousarray(np.moveaxis(sums, 0, -1))


@dataclass(frozen=True)
class ReturnScale:
    """Mean and standard deviation of the returns: the value network predicts in these units."""

    mean: float = 0.0
    std: float = 1.0
    """zero where returns do not vary: the network is then not asked"""

    @classmethod
    def measured(cls, mean: float, std: float) -> "ReturnScale":
        """Units by statistics of returns.

        :param mean: of the returns
        :param std: of the returns; what is but rounding counts as zero
        :return: units
        """
        return cls(mean, std if varies(np.array([std]), np.array([mean]))[0] else 0.0)

    def standardize(self, values: Values) -> Values:
        """
        From units of the rewards to those of the network.

        :param values: of any shape
        :return: the same shape
        """
        standard: Values = (values - self.mean) / (self.std or 1.0)
        return standard

    def restore(self, standard: Values) -> Values:
        """
        From units of the network to those of the rewards.

        :param standard: what the network says, of any shape
        :return: the same shape
        """
        values: Values = standard * self.std + self.mean
        return values


def value_units(model: BaseAlgorithm) -> ReturnScale | None:
    """Tell in which units an algorithm's value network predicts.

    :param model: of this package, or of another, whose network predicts what it is paid
    :return: units; None of this package's policies whose value network nobody teaches
    """
    if not isinstance(model, SavedModel):
        return ReturnScale()
    own: Any = model
    return own._scale() if hasattr(own, "_scale") else getattr(own, "return_scale", None)


def actor_parameters(policy: ActorCriticPolicy) -> list[th.nn.Parameter]:
    """Find the parameters that the actions depend on.

    :param policy: the policy
    :return: of its features, its actor's network and its action distribution
    """
    modules = (policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net)
    network = [parameter for module in modules for parameter in module.parameters()]
    return [*network, policy.log_std] if hasattr(policy, "log_std") else network


def predict_values(policy: ActorCriticPolicy, inputs: Any, scale: ReturnScale) -> FloatArray:
    """Predict values.

    :param policy: with the value network
    :param inputs: what the policy sees, ``[n, ...]``
    :param scale: units of the network
    :return: ``[n]``, in units of the rewards
    """
    with th.no_grad():
        values = policy.predict_values(obs_as_tensor(inputs, policy.device)).reshape(-1).double().cpu().numpy()
    return scale.restore(values)


def trajectory_values(policy: ActorCriticPolicy, trajectories: Trajectories, to_inputs: Any, scale: ReturnScale) -> FloatArray:
    """Predict the values of all observations of trajectories, the last ones included.

    :param policy: with the value network
    :param trajectories: sampled
    :param to_inputs: from observations to what the policy sees of them
    :param scale: units of the network
    :return: ``[M, N, T + 1]``
    """
    shape = trajectories.states.shape[:3]
    flat = map_observations(lambda a: a.reshape(-1, *a.shape[3:]), trajectories.observations)
    return predict_values(policy, to_inputs(flat), scale).reshape(shape)


def rescale_values(policy: ActorCriticPolicy, old: ReturnScale, new: ReturnScale) -> None:
    """Change the units of the value network; what it predicts in units of the rewards stays what it was.

    :param policy: with the value network
    :param old: its units until now
    :param new: its units from now on
    """
    rescale_layer(policy.value_net, old, new)


def rescale_layer(layer: nn.Module, old: ReturnScale, new: ReturnScale) -> None:
    """Change the units of a linear layer's outputs; what they say in units of the rewards stays what it was.

    :param layer: the last one of a network
    :param old: its units until now
    :param new: its units from now on
    """
    assert isinstance(layer, nn.Linear)
    with th.no_grad():
        unit = new.std or 1.0
        layer.weight.mul_(old.std / unit)
        layer.bias.mul_(old.std).add_(old.mean - new.mean).div_(unit)


def fit_values(
    policy: ActorCriticPolicy,
    inputs: Any,
    targets: FloatArray,
    scale: ReturnScale,
    n_epochs: int,
    batch_size: int,
    rng: np.random.Generator,
) -> float:
    """Regress the value network on returns; the actor stays what it is.

    :param policy: with the value network and its optimizer
    :param inputs: what the policy sees, ``[n, ...]``
    :param targets: ``[n]``, in units of the rewards
    :param scale: units of the network
    :param n_epochs: passes over the samples
    :param batch_size: samples of an update
    :param rng: order of the samples
    :return: mean squared error of the last pass, in units of the variance of the returns
    """
    observations, actor = obs_as_tensor(inputs, policy.device), actor_parameters(policy)
    standard = th.as_tensor(scale.standardize(targets), dtype=th.float32, device=policy.device)
    losses: list[float] = []
    for _ in range(n_epochs):
        losses = []
        for rows in np.array_split(rng.permutation(len(targets)), -(-len(targets) // batch_size)):
            index = th.as_tensor(rows, device=policy.device)
            batch: Any = (
                {key: value[index] for key, value in observations.items()}
                if isinstance(observations, dict)
                else observations[index]
            )
            with being_updated(policy):
                loss = th.nn.functional.mse_loss(policy.predict_values(batch).reshape(-1), standard[index])
            policy.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for parameter in actor:  # features that the value shares with the actor are the actor's
                parameter.grad = None
            policy.optimizer.step()
            losses.append(float(loss.detach()))
    return float(np.mean(losses))
