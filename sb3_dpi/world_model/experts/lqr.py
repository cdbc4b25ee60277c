"""The second-order expert: KL-constrained LQR along imagined windows.

With w_t the policy's noise, x_{t+1} = g(x_t, w_t) is the closed loop of policy and corrected model. Around sampled windows
g is linearised, and the cost of a step, minus its reward weighed with discount and continuation, and minus the critic at the
end, is expanded to second order, the Hessians averaged over the windows of a time step and projected. Within

    KL(p(w_t|x_t) || N(0, I)) <= trust_region   nats a step, mean over all windows,

the linear-Gaussian controllers p of all windows share one dual variable beta (Sun et al. 2018, Eq. 4): the noise of the policy
is the whitened action of ``trajopt.kl_lqr``. As the bound goes to zero, beta e_t is the gradient of the window's return.

Shapes: ``H`` steps, W = E m windows, dz = dx + du.
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.trajopt.cost import project_psd
from sb3_dpi.trajopt.kernels import PassResult, lqr_pass
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.experts.plan_targets import PlanTargets, advise
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.experts.sampling import window_gains
from sb3_dpi.world_model.imagination import Imagined, roll_out

TOLERANCE = 0.1
"""The search ends with the KL divergence in [1 - TOLERANCE, 1] of its bound."""
SMALLEST_CHANCE = 1e-3
"""Of continuation: below it a death is certain, and there is nothing to gain by a little less of it."""
COPIES = 8.0
"""Matrices of every window and step at a time, of state and noise."""
MOST_PASSES = 30
FIRST_STEP = 4.0
"""Factor by which the dual variable is first moved."""


@dataclass(frozen=True)
class Expansion:
    """The closed loop along the windows, to second order in deviation of state and absolute noise."""

    F: FloatArray
    """``[W, H + 1, dx, dz]``, zero at the last step, which only closes"""
    C: FloatArray
    """``[W, H + 1, dz, dz]``"""
    c: FloatArray
    """at the sampled point, ``[W, H + 1, dz]``"""


def _derivatives(values: th.Tensor, inputs: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
    """Of each column of ``values [..., k]`` by its own row of the inputs: ``[..., k, dz]``, still differentiable."""
    k = values.shape[-1]
    rows = [
        th.cat(th.autograd.grad(values[..., i].sum(), inputs, create_graph=True, materialize_grads=True), dim=-1)
        for i in range(k)
    ]
    return th.stack(rows, dim=-2)


def expand(problem: PlanningProblem, imagined: Imagined, noise: th.Tensor, gains: th.Tensor, weights: th.Tensor) -> Expansion:
    """
    Linearise the closed loop and expand its cost.

    :param problem: policy, model, critic and windows
    :param imagined: the sampled windows
    :param noise: ``[H + 1, E, m, du]``
    :param gains: of every step, with discount and continuation, ``[H + 1, E, m]``
    :param weights: discount and continuation, ``[H + 1, E, m]``
    :return: expansion around them
    """
    actor, ensemble, critic, windows = problem.actor, problem.ensemble, problem.critic, problem.windows
    H, E, m, dx = windows.state_residuals.shape
    W, du = E * m, noise.shape[-1]

    def by_member(array: th.Tensor) -> th.Tensor:
        """Time behind each other within a member: ``[E, H m, ...]``."""
        return array.transpose(0, 1).flatten(1, 2)

    def by_window(array: th.Tensor, steps: int) -> FloatArray:
        """``[W, steps, ...]``."""
        shaped = array.detach().reshape(E, steps, m, *array.shape[2:]).transpose(1, 2)
        return shaped.reshape(W, steps, *array.shape[2:]).double().cpu().numpy()

    states, draws = (by_member(array).detach().requires_grad_(True) for array in (imagined.states[:-1], noise[:-1]))
    actions, _ = actor.sample(states, draws)
    predicted, earned = ensemble.predict(states, actions)
    following = ensemble.clip(predicted + by_member(windows.state_residuals))
    rewards = ensemble.reward(states, actions, following, earned + by_member(windows.reward_residuals))
    cost = -by_member(weights[:-1]) * rewards / critic.unit.float()
    # who dies loses all that would have come
    ahead = by_member(gains.flip(0).cumsum(0).flip(0)[1:])
    cost = cost - ahead * ensemble.continuation(states, actions, following).clamp_min(SMALLEST_CHANCE).log()
    slope = _derivatives(cost[..., None], (states, draws))
    curvature = _derivatives(slope[..., 0, :], (states, draws))
    jacobian = _derivatives(following, (states, draws))
    last, final = (array[-1].detach().requires_grad_(True) for array in (imagined.states, noise))
    closing, _ = actor.sample(last, final)
    value = critic(last.flatten(0, 1), closing.flatten(0, 1)).view(E, m)
    end_slope = _derivatives((-weights[-1] * value)[..., None], (last, final))
    end_curvature = _derivatives(end_slope[..., 0, :], (last, final))
    F = np.zeros((W, H + 1, dx, dx + du))
    F[:, :H] = by_window(jacobian, H)
    c = np.concatenate([by_window(slope[..., 0, :], H), by_window(end_slope[..., 0, :], 1)], axis=1)
    C = np.concatenate([by_window(curvature, H), by_window(end_curvature, 1)], axis=1)
    # averaged over the windows: one network's Hessian is mostly the noise of its fit
    pooled = project_psd(0.5 * (C + np.swapaxes(C, -1, -2)).mean(0))
    return Expansion(F, np.broadcast_to(pooled, C.shape).copy(), c)


def solve(expansion: Expansion, noise: FloatArray, bound: float, beta: float) -> tuple[PassResult, float, float]:
    """
    Find the shared dual variable.

    :param expansion: of all windows
    :param noise: at which they were expanded, ``[W, H + 1, du]``
    :param bound: nats a step, mean over the windows
    :param beta: where to begin
    :return: controllers of the whitened action, beta, and the KL divergence
    """
    F, C = expansion.F, expansion.C
    W, T, dx, _ = F.shape
    # in deviations of the state and absolute noise
    f = -np.einsum("wtij,wtj->wti", F[..., dx:], noise)
    c = expansion.c - np.einsum("wtij,wtj->wti", C[..., dx:], noise)
    still = np.zeros((W, T, dx, dx))

    def at(log_beta: float) -> tuple[PassResult, float]:
        eta = np.full((W, T), np.exp(log_beta))
        result = lqr_pass(F, f, still, C, c, np.zeros((W, dx)), np.zeros((W, dx, dx)), eta, 1.0)
        bad = bool((result[4] >= 0).any())
        return result, np.inf if bad else float(result[3].mean())

    position, step = np.log(max(beta, 1e-12)), np.log(FIRST_STEP)
    low, high = -np.inf, np.inf  # too much, too little divergence
    result, divergence = at(position)
    for _ in range(MOST_PASSES):
        if (1.0 - TOLERANCE) * bound <= divergence <= bound:
            break
        if divergence > bound:
            low = position
        else:
            high = position
        if np.isfinite(low) and np.isfinite(high):
            position = 0.5 * (low + high)
        else:
            position, step = position + (step if divergence > bound else -step), 2.0 * step
        result, divergence = at(position)
    return result, float(np.exp(position)), divergence


@dataclass(frozen=True)
class KLLQR:
    """KL-constrained LQR along windows.

    :param trust_region: KL(expert || policy), nats a step; usual: .05 to .5
    :param imitation_steps: of the policy for each plan; usual: 5 to 20
    """

    trust_region: float = 0.1
    imitation_steps: int = 10

    def n_bytes(self, n_windows: int, horizon: int, state_dim: int, action_dim: int) -> float:
        """
        Memory of a plan.

        :param n_windows: of all members
        :param horizon: steps of a window
        :param state_dim: numbers in a state
        :param action_dim: numbers in an action
        :return: bytes
        """
        return 8.0 * COPIES * n_windows * (horizon + 1) * (state_dim + action_dim) ** 2

    def plan(self, problem: PlanningProblem, rng: np.random.Generator) -> PlanTargets:
        """
        Plan in windows.

        :param problem: policy, model, critic and windows
        :param rng: draws the noise of the windows
        :return: what the policy should do
        """
        steps, E, m, du = problem.noise_shape
        drawn = rng.standard_normal(problem.noise_shape).astype(np.float32)
        noise = th.as_tensor(drawn, device=problem.windows.states.device)
        with th.no_grad():
            imagined = roll_out(problem.actor, problem.ensemble, problem.windows, noise)
            gains, weights = window_gains(problem, imagined)
        expansion = expand(problem, imagined, noise, gains, weights)
        by_window = np.moveaxis(drawn.reshape(steps, E * m, du), 0, 1).astype(np.float64)
        start = max(float(gains.sum(0).std()), 1e-6)
        (_, k, S, _, _), beta, divergence = solve(expansion, by_window, self.trust_region, start)

        def tensor(array: FloatArray) -> th.Tensor:
            shaped = np.moveaxis(array, 0, 1).reshape(noise.shape).astype(np.float32)
            return th.as_tensor(shaped, device=noise.device)

        variance = np.diagonal(S, axis1=-2, axis2=-1)
        return advise(
            problem.actor,
            imagined.states,
            th.ones_like(weights),
            weights,
            tensor(k),
            tensor(variance),
            beta,
            float(gains.sum(0).mean()),
            divergence,
        )
