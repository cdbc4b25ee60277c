"""A policy as a time-varying linear-Gaussian controller around sampled trajectories (MDGPS, section 3.1)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_dpi.common.local_models import RegressionSettings, fit_regression
from sb3_dpi.common.policies import BoundedGaussianPolicy
from sb3_dpi.common.trajectories import Observations, Trajectories, map_observations
from sb3_dpi.trajopt.dynamics import LinearGaussianFit
from sb3_dpi.trajopt.types import FloatArray, LinearGaussianController


def linearize_policy(
    policy: BoundedGaussianPolicy,
    trajectories: Trajectories,
    to_inputs: Callable[[Observations], Observations],
    input_scale: FloatArray | None,
    method: str | dict[str, Any] | RegressionSettings | None,
    rng: np.random.Generator,
    input_limit: float | FloatArray = np.inf,
    n_fitted: int | None = None,
) -> LinearGaussianFit:
    """Linearise a policy around the samples of each condition and time step (MDGPS, section 3.1).

    :param policy: the global policy
    :param trajectories: sampled
    :param to_inputs: from observations to what the policy sees of them
    :param input_scale: derivative of the policy's input with respect to the planner's state, ``[dx]``; None where the
        policy sees something else
    :param method: ``"jacobian"``, the settings of a regression, or None: the Jacobian where there is one, else "nearest"
    :param rng: of the regression
    :param input_limit: where the policy's inputs are clipped, a number or ``[dx]``
    :param n_fitted: linearise at the first so many conditions; None does at all
    :return: mean actions on states
    :raises ValueError: if the Jacobian is asked for where policy and planner see different things
    """
    by_jacobian = method == "jacobian" or (method is None and input_scale is not None)
    if by_jacobian and n_fitted is not None:
        trajectories = trajectories.first(n_fitted)
    shape = trajectories.alive.shape
    flat = to_inputs(map_observations(lambda a: a[:, :, :-1].reshape(-1, *a.shape[3:]), trajectories.observations))
    states = trajectories.states[:, :, :-1]
    if method == "jacobian" and input_scale is None:
        raise ValueError(
            'linearization="jacobian" needs a policy that observes the planner\'s state; here it observes something else: '
            'use None or a regression ("nearest", "niw", "gmm")'
        )
    if by_jacobian:
        assert input_scale is not None
        means, jacobians = policy_mean_and_jacobian(policy, flat, input_scale)
        arrays = list(flat.values()) if isinstance(flat, dict) else [flat]
        flat_array = np.concatenate([array.reshape(len(jacobians), 1, -1) for array in arrays], -1)
        jacobians = jacobians * (np.abs(flat_array) < input_limit)  # a clipped input does not react
        jacobians = jacobians.reshape(*shape, *jacobians.shape[1:])
        return average_jacobians(states, means.reshape(*shape, -1), jacobians, trajectories.weights)
    means = policy_mean(policy, flat).reshape(*shape, -1)
    points = np.where(trajectories.alive[..., None], np.concatenate([states, means], -1), 0.0)
    settings = RegressionSettings.parse("linearization", "nearest" if method is None else method)
    return fit_regression(points, trajectories.weights, states.shape[-1], settings, rng, n_fitted=n_fitted)


def policy_mean(policy: BoundedGaussianPolicy, inputs: Observations, chunk: int = 2048) -> FloatArray:
    """Mean actions of a policy, a chunk at a time (images would fill the memory).

    :param policy: the policy
    :param inputs: what it sees, ``[n, ...]``
    :param chunk: observations for each forward pass
    :return: ``[n, du]``
    """
    n = len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)
    parts = []
    with th.no_grad():
        for start in range(0, n, chunk):
            part = map_observations(lambda array, i=start: array[i : i + chunk], inputs)  # type: ignore[misc]
            parts.append(policy.action_mean(obs_as_tensor(part, policy.device)).double().cpu().numpy())
    return np.concatenate(parts)


def policy_mean_and_jacobian(
    policy: BoundedGaussianPolicy, inputs: Observations, input_scale: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean action and its derivative with respect to the planner's state.

    :param policy: whose observation is the planner's state, up to a scale
    :param inputs: what the policy saw, ``[n, ...]``, or a dictionary of such in the state's order
    :param input_scale: derivative of the policy's input with respect to the state, ``[dx]``
    :return: mean ``[n, du]``, Jacobian ``[n, du, dx]``
    """

    def leaf(array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, dtype=th.float64, device=policy.device).requires_grad_()

    tensors: Any = {key: leaf(array) for key, array in inputs.items()} if isinstance(inputs, dict) else leaf(inputs)
    leaves = list(tensors.values()) if isinstance(inputs, dict) else [tensors]
    mean = policy.action_mean(tensors)
    n, du = mean.shape
    rows = [
        th.cat([part.reshape(n, -1) for part in th.autograd.grad(mean[:, i].sum(), leaves, retain_graph=True)], 1)
        for i in range(du)
    ]
    jacobian = th.stack(rows, 1).double().cpu().numpy()
    return mean.detach().double().cpu().numpy(), jacobian * input_scale


def average_jacobians(states: FloatArray, means: FloatArray, jacobians: FloatArray, weights: FloatArray) -> LinearGaussianFit:
    """Linearise a policy by averaging its Jacobians over the samples of each time step.

    :param states: ``[M, N, T, dx]``
    :param means: the policy's mean actions there, ``[M, N, T, du]``
    :param jacobians: ``[M, N, T, du, dx]``
    :param weights: ``[M, N, T]``
    :return: means on states; the covariance is what linearity leaves unexplained
    """
    total = weights.sum(1)
    # steps without a living sample are cut from the plan; what stands there only has to be finite
    safe = np.where(total[:, None] > 0, weights, 1.0)
    share = safe / safe.sum(1, keepdims=True)
    K = np.einsum("mnt,mntux->mtux", share, jacobians)
    centre = np.einsum("mnt,mntx->mtx", share, states)
    k = np.einsum("mnt,mntu->mtu", share, means) - np.einsum("mtux,mtx->mtu", K, centre)
    residual = means - np.einsum("mtux,mntx->mntu", K, states) - k[:, None]
    cov = np.einsum("mnt,mntu,mntv->mtuv", share, residual, residual)
    return LinearGaussianFit(K, k, cov)


def as_controller(fit: LinearGaussianFit, std: FloatArray) -> LinearGaussianController:
    """Read a regression of mean actions on states as a controller with the policy's exploration.

    :param fit: means on states
    :param std: of the policy, ``[du]``
    :return: controller whose covariance is the policy's plus what the fit left unexplained
    """
    return LinearGaussianController(fit.coef, fit.bias, fit.cov + np.diag(std**2))
