"""Local models against real trajectories that they were not fitted to, and their expert in the real environment.

Two sets of trajectories are sampled by the policy from the same initial conditions: models are fitted to the first, together
with those that the algorithm keeps, and judged by the second. The expert then acts from the same conditions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from sb3_dpi.aggrevated_oc import AggreVaTeDOC
from sb3_dpi.common.actor import export_actor
from sb3_dpi.common.local_models import CostSettings, LocalModel, step_costs, take_conditions, total_cost
from sb3_dpi.common.trajectories import Trajectories, concatenate
from sb3_dpi.diagnose.episodes import Act, Episode, Stage
from sb3_dpi.diagnose.expert import over_time
from sb3_dpi.diagnose.prediction import HORIZONS, Predictions
from sb3_dpi.diagnose.subject import Subject, apart
from sb3_dpi.trajopt.kl_lqr import KLConstraintError
from sb3_dpi.trajopt.lqr import matvec
from sb3_dpi.trajopt.types import FloatArray, IntArray, LinearGaussianController, LinearGaussianDynamics

ALIKE = ("fresh", "fixed")
"""Conditions all of whose trajectories begin in the same state."""
STARTS_OF_TIME = 25
"""Time steps, evenly over the plan, from which predictions start."""


class NoLocalModelError(RuntimeError):
    """There is nothing to look into; the message is for the page."""


@dataclass(frozen=True)
class LocalLook:
    """What local models and their expert are worth."""

    predictions: list[Predictions]
    """of the trajectories that were left out"""
    rewards: pd.DataFrame
    """a row a step: ``reward`` and ``predicted``, deaths spread as the cost's fit spreads them"""
    returns: pd.DataFrame
    """a row a condition: ``real`` and ``imagined`` return of the policy over the plan, discounted"""
    ahead: pd.DataFrame
    """a row a condition: what the expert earns beyond the policy over the plan, in the ``model`` and in ``real``"""
    conditions: pd.DataFrame
    """a row a condition: errors, ahead, divergence"""
    kl: pd.DataFrame
    """a row a time step"""


def look(subject: Subject, stage: Stage, seed: int, horizons: Sequence[int] = HORIZONS) -> LocalLook:
    """
    Fit local models to fresh trajectories, plan, and see what came true.

    :param subject: MDGPS or AggreVaTeD-OC
    :param stage: the real environment
    :param seed: of initial conditions and noise
    :param horizons: steps ahead
    :return: what was found
    :raises NoLocalModelError: if nothing could be planned, or states are reduced
    """
    trial = _prepared(subject, stage, seed)
    seeds = _seeds(trial, seed)
    sets = [_as_trajectories(_sample(trial, stage, seeds), trial.size.horizon) for _ in range(2)]
    trial.rollout_buffer = SimpleNamespace(trajectories=lambda: sets[0])
    try:
        known = trial.recall()
        model = trial.fit_model(known)
        planned, controller, kl = _plan(trial, model, known)
    except (KLConstraintError, ValueError) as error:
        raise NoLocalModelError(f"No plan could be made: {error}") from error
    M, held_out = len(seeds), sets[1]
    planned, controller = planned.first(M), planned.first(M).take(controller)
    followed = _as_trajectories(_follow(stage, controller, planned.lengths, seeds, trial._rng), trial.size.horizon)
    predictions = [found for h in horizons if (found := predict(model.first(M), held_out, h)) is not None]
    return _summary(trial, planned, controller, kl[:M], held_out, followed, predictions)


def _prepared(subject: Subject, stage: Stage, seed: int) -> Any:
    trial = apart(subject.model, stage.normalizer, seed)
    if trial.state_rank is not None:
        raise NoLocalModelError(
            f"States are planned in {trial.state_rank} directions that change with every fit, which say nothing by themselves"
        )
    if trial.n_environments > 1:  # what is kept is of several, and here is one
        trial.past = ()
    trial.environment_indices = np.zeros(1, dtype=int)
    trial._actor = export_actor(trial.policy)
    return trial


def _seeds(trial: Any, seed: int) -> IntArray:
    """Reset seeds ``[M, N]``; fixed conditions are those of the training."""
    M, N = trial.total_conditions, trial.size.samples_per_condition
    base = trial.condition_base if trial.conditions == "fixed" else seed
    places = np.arange(M)[:, None] + np.zeros(N, dtype=int) if trial.conditions in ALIKE else np.arange(M * N).reshape(M, N)
    seeds: IntArray = (base + places) % 2**31
    return seeds


def _sample(trial: Any, stage: Stage, seeds: IntArray) -> list[list[Episode]]:
    """The policy, or what else samples in training."""

    def act_of(condition: int) -> Act:
        sampler: list[Callable[..., np.ndarray]] = []

        def act(t: int, seen: Any, states: FloatArray) -> tuple[FloatArray, float]:
            if t == 0:
                sampler[:] = [trial._make_sampler(np.array([condition]), states, trial.size.horizon + 1)]
            if t == trial.size.horizon:  # the action behind the end, which nobody takes
                return np.zeros((1, len(trial.policy.log_std))), 0.0
            return np.asarray(sampler[0](t, seen, states), np.float64), 0.0

        return act

    return [stage.play_several(act_of(m), [int(s) for s in row], trial.size.horizon) for m, row in enumerate(seeds)]


def _follow(
    stage: Stage, controller: LinearGaussianController, lengths: IntArray, seeds: IntArray, rng: np.random.Generator
) -> list[list[Episode]]:
    """The expert of each condition, as far as it has planned."""

    def act_of(m: int) -> Act:
        K, k, root = controller.K[m], controller.k[m], np.linalg.cholesky(controller.cov[m])

        def act(t: int, seen: Any, states: FloatArray) -> tuple[FloatArray, float]:
            t = min(t, len(K) - 1)
            return states @ K[t].T + k[t] + rng.standard_normal((1, len(k[t]))) @ root[t].T, 0.0

        return act

    each = enumerate(zip(seeds, lengths, strict=True))
    return [stage.play_several(act_of(m), [int(s) for s in row], int(length)) for m, (row, length) in each]


def _as_trajectories(episodes: Sequence[Sequence[Episode]], horizon: int) -> Trajectories:
    """Align episodes in time, ``[M, N, T]``; all may be shorter."""
    flat, (M, N) = [episode for row in episodes for episode in row], (len(episodes), len(episodes[0]))

    def padded(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
        rows = [np.pad(a, [(0, length - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in arrays]
        return np.stack(rows).reshape(M, N, length, *arrays[0].shape[1:])

    first: Any = flat[0].observations
    observations: Any
    if isinstance(first, dict):
        observations = {key: padded([e.observations[key] for e in flat], horizon + 1) for key in first}
    else:
        observations = padded([np.asarray(e.observations) for e in flat], horizon + 1)
    last = [np.arange(len(e)) == len(e) - 1 for e in flat]
    return Trajectories(
        observations,
        padded([e.states for e in flat], horizon + 1),
        padded([e.actions[:-1] for e in flat], horizon),
        padded([e.rewards for e in flat], horizon),
        padded([np.ones(len(e), dtype=bool) for e in flat], horizon),
        padded([end & e.terminated for end, e in zip(last, flat, strict=True)], horizon),
    )


def _plan(trial: Any, model: LocalModel, known: Trajectories) -> tuple[LocalModel, LinearGaussianController, FloatArray]:
    """The model of what was planned, with the fitted cost alone; the expert; and its KL ``[M, T]``."""
    if isinstance(trial, AggreVaTeDOC):
        expert = trial.improve_expert(model, trial.fit_values_around(known, model))
        kl = np.zeros(expert.controller.k.shape[:2]) if expert.solution is None else expert.solution.kl
        return model.shortened(expert.model.lengths), expert.controller, kl
    planned, solution = trial.improve_expert(model)
    return planned, solution.controller, solution.kl


def predict(model: LocalModel, trajectories: Trajectories, horizon: int) -> Predictions | None:
    """
    Follow real actions in the fitted dynamics.

    :param model: of the trajectories' conditions
    :param trajectories: that were not fitted
    :param horizon: steps ahead
    :return: the spread is that of the fitted noise; None where no trajectory is as long
    """
    T = trajectories.alive.shape[-1]
    lasts = trajectories.alive & (np.arange(T) < model.lengths[:, None, None])
    found: list[tuple[FloatArray, ...]] = []
    for t in np.unique(np.linspace(0, T - horizon, STARTS_OF_TIME).astype(int)) if horizon <= T else ():
        whole = lasts[:, :, t : t + horizon].all(-1)
        if whole.any():
            mean, std = _roll(model.dynamics, trajectories, int(t), horizon)
            ends = trajectories.states[:, :, t], trajectories.states[:, :, t + horizon], mean, std
            found.append(tuple(np.broadcast_to(array, mean.shape)[whole] for array in ends))
    return Predictions(horizon, *(np.concatenate(parts) for parts in zip(*found, strict=True))) if found else None


def _roll(
    dynamics: LinearGaussianDynamics, trajectories: Trajectories, start: int, horizon: int
) -> tuple[FloatArray, FloatArray]:
    """Mean ``[M, N, dx]`` and standard deviation ``[M, 1, dx]`` of the state after the real actions."""
    x, dx = trajectories.states[:, :, start], trajectories.states.shape[-1]
    cov = np.zeros((len(x), dx, dx))
    for t in range(start, start + horizon):
        F = dynamics.F[:, t]
        z = np.concatenate([x, trajectories.actions[:, :, t]], -1)
        x = matvec(F[:, None], z) + dynamics.f[:, None, t]
        cov = F[..., :dx] @ cov @ np.swapaxes(F[..., :dx], -1, -2) + dynamics.cov[:, t]
    variance = np.maximum(np.diagonal(cov, axis1=-2, axis2=-1), 0.0)
    return x, np.sqrt(variance)[:, None]


def _summary(
    trial: Any,
    planned: LocalModel,
    controller: LinearGaussianController,
    kl: FloatArray,
    held_out: Trajectories,
    followed: Trajectories,
    predictions: list[Predictions],
) -> LocalLook:
    M, gamma = len(planned.lengths), trial.gamma
    spread = CostSettings.parse(trial.cost).death_spread
    costs = step_costs(concatenate((held_out, followed)), trial._planning_discount(), spread)
    of_policy, of_expert = (
        _discounted(part, trajectories, planned.lengths, gamma)
        for part, trajectories in ((costs[:M], held_out), (costs[M:], followed))
    )
    imagined, expected = (total_cost(planned, each, gamma) for each in (planned.policy, controller))
    steps = planned.lengths
    returns = pd.DataFrame(
        {"steps": steps, "condition": np.arange(M), "real": -of_policy.mean(1), "imagined": -imagined, "spread": 0.0}
    )
    real = of_policy - of_expert
    model, error = imagined - expected, real.std(1) / np.sqrt(max(real.shape[1] - 1, 1))
    ahead = pd.DataFrame({"steps": int(steps.max()), "start": np.arange(M), "model": model, "real": real.mean(1)})
    within = np.where(np.arange(kl.shape[1]) < steps[:, None], kl, np.nan)
    columns = {"condition": np.arange(M), "planned_steps": steps, "ahead_model": model, "ahead_real": real.mean(1)}
    conditions = pd.DataFrame({**columns, "ahead_real_error": error, "kl_per_step": np.nanmean(within, axis=1)})
    for found in predictions:
        conditions[f"error_{found.horizon}"] = _by_condition(planned, held_out, found)
    return LocalLook(
        predictions, _reward_table(planned, held_out, costs[:M]), returns, ahead, conditions, over_time(_filled(within))
    )


def _filled(kl: FloatArray) -> FloatArray:
    """Without the time steps that no condition has planned."""
    return kl[:, ~np.isnan(kl).all(0)]


def _discounted(costs: FloatArray, trajectories: Trajectories, lengths: IntArray, gamma: float) -> FloatArray:
    steps = np.arange(costs.shape[-1])
    counted = trajectories.alive & (steps < lengths[:, None, None])
    sums: FloatArray = np.where(counted, costs, 0.0) @ gamma**steps
    return sums


def _by_condition(model: LocalModel, held_out: Trajectories, pooled: Predictions) -> FloatArray:
    """Root mean square error of each condition over all numbers, in the standard deviations of their change over all."""
    errors = np.full(len(model.lengths), np.nan)
    for m in range(len(errors)):
        own = predict(take_conditions(model, slice(m, m + 1)), held_out.take(slice(m, m + 1)), pooled.horizon)
        if own is not None:
            errors[m] = np.sqrt(np.square((own.predicted - own.truth) / pooled.change_std).mean())
    return errors


def _reward_table(model: LocalModel, trajectories: Trajectories, costs: FloatArray) -> pd.DataFrame:
    z = np.concatenate([trajectories.states[:, :, :-1], trajectories.actions], -1)
    C, c = model.cost.C[:, None], model.cost.c[:, None]
    predicted = 0.5 * np.sum(z * matvec(C, z), -1) + np.sum(c * z, -1) + model.cost.const[:, None]
    planned = trajectories.alive & (np.arange(costs.shape[-1]) < model.lengths[:, None, None])
    return pd.DataFrame({"reward": -costs[planned], "predicted": -predicted[planned]})
