"""Experts that sample: MPPI and the cross-entropy method with lasting noise (iCEM).

Both plan the policy's noise in a window of H steps and for the action that closes it. N particles draw noise sequences, the
corrected model rolls them out, and with R the return of a window, closed by the critic,

- MPPI weighs them, w ~ exp(R / beta), with beta such that KL(w || uniform) is ``trust_region`` nats a step, mean over all
  windows: the best policy within the trust region, by importance sampling (Williams et al. 2017; Sun et al. 2018, Eq. 4);
- iCEM takes the best few, fits a Gaussian to them and draws again, with noise that lasts and the best kept (Pinneri et al.
  2020); its mean is moved back towards the policy until the KL divergence is ``trust_region`` nats a step.

Shapes: ``E`` members, ``m`` windows each, ``N`` particles; noise ``[H + 1, E, m, N, du]``.
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.trajopt.noise import correlate
from sb3_dpi.trajopt.shooting import cross_entropy, tempered_weights
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.experts.plan_targets import PlanTargets, advise
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.imagination import Imagined, Windows, roll_out

SMALLEST_SPREAD = 1e-2
"""Smallest variance of planned noise, in units of the policy's."""


def window_gains(problem: PlanningProblem, imagined: Imagined) -> tuple[th.Tensor, th.Tensor]:
    """
    What the steps of a window earn beyond the entropy of its own actions; the critic closes it.

    :param problem: its critic, temperature and discount count
    :param imagined: what happened in its windows, or to particles of them
    :return: in units of value, with discount and continuation, ``[H + 1, E, rows]``, and these alone, the same shape
    """
    gains, weights = problem.gains(imagined)
    gains = th.cat([gains[:-1], (gains[-1] - problem.temperature * imagined.log_probs[-1])[None]])
    return weights * gains, weights


def repeat(windows: Windows, n: int) -> Windows:
    """
    Give every window n particles.

    :param windows: m for each member
    :param n: N
    :return: m times N for each member, the particles of a window behind each other
    """
    return Windows(
        windows.states.repeat_interleave(n, 1),
        windows.state_residuals.repeat_interleave(n, 2),
        windows.reward_residuals.repeat_interleave(n, 2),
    )


@dataclass(frozen=True)
class Particles:
    """N noise sequences of every window, and what they led to."""

    noise: np.ndarray
    """``[H + 1, W, N, du]``, W = E m"""
    returns: FloatArray
    """``[W, N]``"""
    states: th.Tensor
    """``[H + 1, E, m, N, dx]``"""
    weights: th.Tensor
    """discount and continuation, ``[H + 1, E, m, N]``"""


@th.no_grad()
def try_out(problem: PlanningProblem, noise: np.ndarray) -> Particles:
    """
    Roll particles out.

    :param problem: policy, model, critic and windows
    :param noise: of the policy, ``[H + 1, W, N, du]``
    :return: what they led to
    """
    steps, E, m, du = problem.noise_shape
    N = noise.shape[2]
    draws = th.as_tensor(noise.reshape(steps, E, -1, du), dtype=th.float32, device=problem.windows.states.device)
    imagined = roll_out(problem.actor, problem.ensemble, repeat(problem.windows, N), draws)
    gains, weights = window_gains(problem, imagined)
    returns = gains.sum(0).cpu().numpy().astype(np.float64)
    shape = (steps, E, m, N)
    return Particles(noise, returns.reshape(E * m, N), imagined.states.view(*shape, -1), weights.reshape(shape))


@dataclass(frozen=True)
class MPPI:
    """Path integral control within a trust region.

    :param trust_region: KL(expert || policy), nats a step; usual: .05 to .5
    :param n_samples: N of each window; usual: 16 to 64
    :param imitation_steps: of the policy for each plan; usual: 5 to 20
    """

    trust_region: float = 0.1
    n_samples: int = 32
    imitation_steps: int = 10

    def plan(self, problem: PlanningProblem, rng: np.random.Generator) -> PlanTargets:
        """
        Plan in windows.

        :param problem: policy, model, critic and windows
        :param rng: draws the particles
        :return: what the policy should do
        """
        steps, E, m, du = problem.noise_shape
        noise = rng.standard_normal((steps, E * m, self.n_samples, du)).astype(np.float32)
        tried = try_out(problem, noise)
        weights, beta, divergence = tempered_weights(tried.returns, self.trust_region * steps)
        shares = self.n_samples * weights.reshape(tried.weights.shape[1:])
        # each particle is a target of its own, which counts as much as it weighs
        device = tried.states.device
        drawn = th.as_tensor(tried.noise.reshape(steps, E, -1, du), device=device)
        importance = th.as_tensor(shares, dtype=th.float32, device=device).expand_as(tried.weights)
        return advise(
            problem.actor,
            tried.states.flatten(2, 3),
            importance.flatten(2, 3),
            tried.weights.flatten(2, 3),
            drawn,
            th.zeros_like(drawn),
            beta,
            float((weights * tried.returns).sum(1).mean()),
            divergence / steps,
        )


@dataclass(frozen=True)
class ICEM:
    """The cross-entropy method with lasting noise and elites that are kept.

    :param trust_region: KL(expert || policy), nats a step; usual: .05 to .5
    :param n_samples: N of each window at first; each further round draws a quarter fewer; usual: 16 to 64
    :param n_elites: how many of the best are fitted; usual: a tenth to a quarter of ``n_samples``
    :param n_rounds: how often; usual: 2 to 4
    :param correlation: of the drawn noise from step to step; usual: 0 to .9
    :param momentum: share of the last round's Gaussian that is kept; usual: .1
    :param imitation_steps: of the policy for each plan; usual: 5 to 20
    """

    trust_region: float = 0.1
    n_samples: int = 32
    n_elites: int = 6
    n_rounds: int = 3
    correlation: float = 0.5
    momentum: float = 0.1
    imitation_steps: int = 10

    def plan(self, problem: PlanningProblem, rng: np.random.Generator) -> PlanTargets:
        """
        Plan in windows.

        :param problem: policy, model, critic and windows
        :param rng: draws the particles
        :return: what the policy should do
        """
        steps, E, m, du = problem.noise_shape
        W = E * m

        def draw(k: int, mean: FloatArray, variance: FloatArray) -> np.ndarray:
            n = max(int(self.n_samples * 0.75**k), self.n_elites)
            fresh = correlate(rng.standard_normal((steps, W, n, du)), self.correlation)
            noise: np.ndarray = mean[:, :, None] + np.sqrt(variance)[:, :, None] * fresh
            return noise.astype(np.float32)

        fit = cross_entropy(
            draw,
            lambda noise: try_out(problem, noise).returns,
            np.zeros((steps, W, du)),
            np.ones((steps, W, du)),
            None,
            axis=2,
            n_rounds=self.n_rounds,
            n_elites=self.n_elites,
            n_kept=self.n_elites,
            momentum=self.momentum,
            smallest=SMALLEST_SPREAD,
        )
        mean, divergence = move_back(fit.mean, self.trust_region)
        followed = try_out(problem, mean[:, :, None].astype(np.float32))

        def tensor(array: FloatArray) -> th.Tensor:
            return th.as_tensor(array.reshape(problem.noise_shape), dtype=th.float32, device=followed.states.device)

        gain = float(fit.kept_returns.mean(1).mean() - fit.returns.mean())
        return advise(
            problem.actor,
            followed.states[..., 0, :],
            th.ones_like(followed.weights[..., 0]),
            followed.weights[..., 0],
            tensor(mean),
            # how much elites differ says how few they are, not how sure the plan is
            th.ones_like(tensor(mean)),
            max(gain, 0.0) / (steps * max(divergence, 1e-6)),
            float(followed.returns.mean()),
            divergence,
        )


def move_back(mean: FloatArray, bound: float) -> tuple[FloatArray, float]:
    """
    Shrink planned noise until KL(N(mean, I) || N(0, I)) is in bounds.

    :param mean: ``[H, W, du]``
    :param bound: nats a step, mean over all
    :return: what is left, and its KL divergence
    """
    divergence = 0.5 * float(np.square(mean).sum(-1).mean())
    if divergence <= bound:
        return mean, divergence
    return mean * np.sqrt(bound / divergence), bound
