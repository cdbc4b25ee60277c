"""The supervised step of DAgger, and the penalty by which plans are drawn to the policy.

What is minimised is the mean over the aggregated states of KL(expert || policy), up to what does not depend on the policy.
Discrete actions: the cross-entropy. Gaussians: least squares for the mean, then the standard deviation in closed form,

    sigma_j^2 = mean_i [ (mu_j(o_i) - u_ij)^2 + s_ij^2 ]

with s the expert's own standard deviation, 0 where only its action is known: then it is maximum likelihood.
"""

import copy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.common.original_observations import shown_spread
from sb3_dpi.common.policies import BoundedGaussianPolicy, being_updated
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.dagger.constants import MIN_STD
from sb3_dpi.systems.protocols import Penalty
from sb3_dpi.trajopt.types import FloatArray, IntArray


def classify(
    policy: BoundedGaussianPolicy, observations: Observations, probabilities: FloatArray, minibatches: IntArray
) -> FloatArray:
    """
    Train the policy on the expert's probabilities of Discrete actions.

    :param policy: trained in place, by its own optimizer
    :param observations: as the policy sees them, ``[n, ...]`` or a dictionary of such
    :param probabilities: ``[n, n_actions]``
    :param minibatches: indices of the samples of each update, ``[n_updates, batch_size]``
    :return: cross-entropy of each minibatch before its update, ``[n_updates]``
    """
    inputs = obs_as_tensor(observations, policy.device)
    targets = th.as_tensor(probabilities, dtype=th.float32, device=policy.device)
    losses = []
    with being_updated(policy):
        for chosen in th.as_tensor(minibatches, device=policy.device):
            batch = map_observations(lambda tensor, i=chosen: tensor[i], inputs)  # type: ignore[misc, arg-type]
            loss = th.nn.functional.cross_entropy(policy.action_mean(batch), targets[chosen])  # type: ignore[arg-type]
            policy.optimizer.zero_grad()
            loss.backward()
            policy.optimizer.step()
            losses.append(loss.detach())
    return th.stack(losses).double().cpu().numpy()


@th.no_grad()
def outputs(policy: BoundedGaussianPolicy, observations: Observations) -> FloatArray:
    """
    What the policy says of observations.

    :param policy: not changed
    :param observations: as it sees them, ``[n, ...]`` or a dictionary of such
    :return: means in units of the bounds, or logits of Discrete actions, ``[n, k]``
    """
    found: FloatArray = policy.action_mean(obs_as_tensor(observations, policy.device)).double().cpu().numpy()
    return found


@th.no_grad()
def fit_std(policy: BoundedGaussianPolicy, observations: Observations, targets: FloatArray, spreads: FloatArray) -> None:
    """
    Set the standard deviation that minimises KL(expert || policy) with the mean as it is.

    :param policy: of a Box
    :param observations: as it sees them, ``[n, ...]`` or a dictionary of such
    :param targets: means of the expert, in units of the bounds, ``[n, du]``
    :param spreads: its standard deviations, ``[n, du]``
    """
    square = np.mean((outputs(policy, observations) - targets) ** 2 + spreads**2, axis=0)
    policy.log_std.copy_(th.as_tensor(np.log(np.maximum(np.sqrt(square), MIN_STD))))


def draw_to(policy: BoundedGaussianPolicy, normalizer: VecNormalize | None, weight: float) -> Penalty:
    """
    Penalise actions of plans by their distance from a policy: ``weight`` times the KL between two Gaussians around them, whose
    standard deviation is the one that the policy began with.

    :param policy: as it is now; later changes do not reach the penalty
    :param normalizer: through which it sees vectors; None for none
    :param weight: in units of the reward, for one nat a step
    :return: of original observations and actions in units of the bounds
    """
    # in double precision: planners take differences of it
    twin = copy.deepcopy(policy).double()
    twin.set_training_mode(False)
    scale = 0.5 * weight * np.exp(-2.0 * policy.log_std_init)
    center: Any = 0.0
    width: Any = 1.0
    clip = np.inf
    if normalizer is not None and normalizer.norm_obs:
        statistics: Any = copy.deepcopy(normalizer.obs_rms)
        center, width = statistics.mean, shown_spread(statistics, normalizer)
        clip = normalizer.clip_obs

    def penalty(observations: FloatArray, actions: FloatArray) -> FloatArray:
        shaped = observations.reshape(-1, *(policy.observation_space.shape or ()))
        mean = outputs(twin, np.clip((shaped - center) / width, -clip, clip))
        found: FloatArray = scale * np.sum((actions - np.clip(mean, -1.0, 1.0)) ** 2, axis=1)
        return found

    return penalty
