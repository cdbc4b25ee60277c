"""Depths weighed by what members and critics agree on, in DPI: trials.

Ways to weigh: "block" one weight a depth a block, "state" those of each start, "last" the deepest alone, "even" all alike.

python depth_trials.py TASK SEED STEPS ARM...

T_k is the return of an imagined window cut after k steps and closed by a critic. Weights are inverse to its variance over
members and critics, with the same starts and the same noise of the policy. In place of the weighed mean of all depths each
window is cut at one depth, drawn by the weights: the same on average, and existing compiled loops do it.
"""

import csv
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dpi import DPI
from sb3_dpi.world_model.experts.pathwise import WindowPlan
from sb3_dpi.world_model.experts.plan_targets import PolicyGradient
from sb3_dpi.world_model.imagination import Batch, Windows, make_windows, roll_out

th.set_num_threads(1)
OUT = Path(__file__).with_name("depth_trials.csv")
DEPTHS_OF_A_PLAN = 4
"""At most: many small groups of windows cost more time."""
REAL_STARTS = 8000
"""Of model rollouts that the critic learns from at real states alone."""
PROBED = 200
"""Real states by which a block's weights are measured."""


def inverse(variances: th.Tensor) -> th.Tensor:
    """Weights over the first axis."""
    weights = 1.0 / (variances + 1e-10 * variances.amax(0, keepdim=True) + 1e-12)
    return weights / weights.sum(0, keepdim=True)


@th.no_grad()
def depth_returns(model: DPI, windows: Windows, noise: th.Tensor, changing: bool) -> th.Tensor:
    """T_k of each critic: ``[H + 1, 2, E, m]``, in units of value."""
    im = roll_out(model.policy.actor, model.ensemble, windows, noise, changing)
    critic, H = model.critic, windows.horizon
    shape = im.log_probs.shape
    q = critic.networks(critic.read(im.states.flatten(0, 2), im.actions.flatten(0, 2)))[..., 0]
    q = q.view(2, *shape).transpose(0, 1)
    alpha, gamma = model.temperature, model.discount
    discounts = (gamma ** th.arange(H + 1))[:, None, None] * im.continuation
    soft = -alpha * discounts * im.log_probs
    rewards = discounts[:-1] * im.rewards / critic.unit.float()
    before = th.cat([th.zeros_like(rewards[:1]), (rewards + soft[:-1]).cumsum(0)])
    return (before + soft)[:, None] + discounts[:, None] * q


def depth_gradients(model: DPI, windows: Windows, noise: th.Tensor) -> th.Tensor:
    """How T_k of each critic changes with the first action: ``[H + 1, 2, E, m, du]``."""
    actor, ensemble, critic, H = model.policy.actor, model.ensemble, model.critic, windows.horizon
    with th.no_grad():
        first, _ = actor.sample(windows.states, noise[0])
    first = first.clone().requires_grad_(True)
    alpha, gamma, unit = model.temperature, model.discount, critic.unit.float()
    state, action, log_prob, cont, total, rows = windows.states, first, 0.0, 1.0, 0.0, []
    for t in range(H + 1):
        q = critic.networks(critic.read(state.flatten(0, 1), action.flatten(0, 1)))[..., 0].view(2, *first.shape[:2])
        for closing in q:
            objective = (total + gamma**t * cont * (closing - alpha * log_prob)).sum()
            rows.append(th.autograd.grad(objective, first, retain_graph=True)[0])
        if t == H:
            break
        predicted, earned = ensemble.predict(state, action)
        following = ensemble.clip(predicted + windows.state_residuals[t])
        reward = ensemble.reward(state, action, following, earned + windows.reward_residuals[t])
        total = total + gamma**t * cont * (reward / unit - alpha * log_prob)
        cont = cont * ensemble.continuation(state, action, following)
        state = following
        action, log_prob = actor.sample(state, noise[t + 1])
    return th.stack(rows).view(H + 1, 2, *first.shape)


def tiled(E: int, rows: np.ndarray) -> np.ndarray:
    return np.tile(rows, E)


class Dealt:
    """The pathwise expert whose windows are cut at depths that were drawn."""

    imitation_steps = 1

    def __init__(self, model: "Trial") -> None:
        self.model = model

    def plan(self, problem: Any, rng: np.random.Generator) -> "DealtPlan":
        m = problem.windows.states.shape[1]
        depths = self.model.depths_of_plan(m, rng)
        parts = []
        for k in np.unique(depths):
            at = th.as_tensor(np.flatnonzero(depths == k))
            w = problem.windows
            cut = Windows(
                w.states[:, at].contiguous(),
                w.state_residuals[:k][:, :, at].contiguous(),
                w.reward_residuals[:k][:, :, at].contiguous(),
            )
            part = replace(problem, windows=cut)
            parts.append((len(at) / m, WindowPlan(part, rng.standard_normal(part.noise_shape).astype(np.float32))))
        return DealtPlan(parts)


class DealtPlan:
    def __init__(self, parts: list) -> None:
        self.parts = parts

    def gradient(self, actor: Any, temperature: float, rng: np.random.Generator) -> PolicyGradient:
        made = [(share, plan.gradient(actor, temperature, rng)) for share, plan in self.parts]
        return PolicyGradient(
            sum(share * g.direction for share, g in made),
            sum(share * g.objective for share, g in made),
            sum(share * g.entropy for share, g in made),
        )


class Trial(DPI):
    """weights: "block" (one a depth a block) or "state" (each start rolled by every member)."""

    def __init__(
        self, *a: Any, weights: str = "block", of_gradient: str = "", expert_depth: int = 0, starts: str = "all", **k: Any
    ) -> None:
        self.starts = starts
        self.way, self.of_gradient, self.expert_depth = weights, of_gradient, expert_depth
        super().__init__(*a, **k)
        self._expert = Dealt(self)
        self.plan_index = 0

    def variances(self, returns: th.Tensor) -> th.Tensor:
        """``[H + 1, m]`` from ``[H + 1, 2, E, m]``."""
        return returns.flatten(1, 2).var(1, correction=0)

    def measure(self, horizon: int) -> None:
        n, E = PROBED, self.ensemble.n_members
        rows = self._starts(n)
        windows = make_windows(self.ensemble, self.memory, tiled(E, rows), horizon, self.numbers.on_policy_correction)
        noise = th.as_tensor(self._rng.standard_normal((horizon + 1, 1, n, self.policy.actor.action_dim)).astype(np.float32))
        returns = depth_returns(self, windows, noise.expand(-1, E, -1, -1), False)
        self.probe = self.variances(returns).mean(1)
        self.weights = inverse(self.probe).double().numpy()
        if self.way == "last":
            self.weights = np.eye(horizon + 1)[-1]
        elif self.way == "even":
            self.weights = np.ones(horizon + 1) / (horizon + 1)
        if self.of_gradient:
            g = depth_gradients(self, windows, noise.expand(-1, E, -1, -1))
            variances = g.flatten(1, 2).var(1, correction=0).sum(-1)
            self.g_var, self.g_median = variances.mean(1), variances.median(1).values
            self.gradient_weights = inverse(self.g_median if self.of_gradient == "median" else self.g_var).double().numpy()

    def depths_of_plan(self, m: int, rng: np.random.Generator) -> np.ndarray:
        if self.way == "state":
            depths = self.window_depths[self.plan_index % len(self.window_depths)]
            self.plan_index += 1
            return depths
        if self.expert_depth:
            return np.full(m, self.expert_depth)
        weights = self.gradient_weights if self.of_gradient else self.weights
        shares = np.cumsum(weights[: self.imagination.horizon + 1])
        n = min(DEPTHS_OF_A_PLAN, m)
        u = (np.arange(n) + rng.random()) / n
        drawn = np.minimum(np.searchsorted(shares / shares[-1], u), self.imagination.horizon)
        return np.repeat(drawn, -(-m // n))[:m]

    def imagine(self, gradient_steps: int) -> Any:
        self.measure(max(self.imagination.horizon, self.numbers.rollout_length))
        windows, data = super().imagine(gradient_steps)
        if self.way == "state":
            windows = self._state_windows(len(windows))
        return windows, data

    def _per_state(self, rows: np.ndarray, horizon: int, first: int) -> tuple[Windows, th.Tensor, np.ndarray]:
        """Windows, noise [H+1, 1, m, du], and the depth of each column, at least first."""
        E, m = self.ensemble.n_members, len(rows)
        windows = make_windows(self.ensemble, self.memory, tiled(E, rows), horizon, self.numbers.on_policy_correction)
        noise = th.as_tensor(self._rng.standard_normal((horizon + 1, 1, m, self.policy.actor.action_dim)).astype(np.float32))
        w = inverse(self.variances(depth_returns(self, windows, noise.expand(-1, E, -1, -1), False))[first:]).double()
        depths = first + (w.cumsum(0).numpy() < self._rng.random(m)[None]).sum(0)
        return windows, noise, np.minimum(depths, horizon)

    def _state_windows(self, n_plans: int) -> list[Windows]:
        m = max(self.imagination.n_windows // self.ensemble.n_members, 1)
        windows, _, depths = self._per_state(self._starts(n_plans * m), self.imagination.horizon, 0)
        self.window_depths, self.plan_index = np.array_split(depths, n_plans), 0
        return windows.split(n_plans)

    def _roll_out(self, misses: Any, n_steps: int) -> Batch:
        L = self.numbers.rollout_length
        if L == 1:
            return super()._roll_out(misses, n_steps)
        E, unit, gamma = self.ensemble.n_members, float(self.critic.unit), self.discount
        alpha = self.temperature * unit
        # with real starts alone as many rows would take as many times as many steps as rollouts are long
        m = -(-n_steps // (L * E)) if self.starts == "all" else REAL_STARTS // E
        du = self.policy.actor.action_dim
        corrected = self.numbers.on_policy_correction
        if self.way == "state":
            rows = self._rng.integers(len(self.memory), size=m)
            windows, noise, depths = self._per_state(rows, L, 1)
            noise = noise.expand(-1, E, -1, -1)
            drawn = np.broadcast_to(depths, (L, E, m)).copy()
        else:
            windows = make_windows(self.ensemble, self.memory, self._rng.integers(len(self.memory), size=E * m), L, corrected)
            noise = th.as_tensor(self._rng.standard_normal((L + 1, E, m, du)).astype(np.float32))
            drawn = None
        with th.no_grad():
            if misses is not None:
                windows = misses.added_to(windows, self._rng, self.numbers.imagined_starts > 0)
            im = roll_out(self.policy.actor, self.ensemble, windows, noise, self.numbers.imagined_starts > 0)
        go = im.continuation[1:] / im.continuation[:-1].clamp_min(1e-6)
        w = self.weights[1 : L + 1]
        parts = []
        for t in range(L if self.starts == "all" else 1):
            left = L - t
            if drawn is None:
                c = np.cumsum(w[:left]) / w[:left].sum()
                depth = 1 + np.minimum(np.searchsorted(c, self._rng.random((E, m))), left - 1)
            else:
                depth = np.minimum(drawn[t], left)
            depth = th.as_tensor(depth)
            rewards, cont = th.zeros(E, m), th.ones(E, m)
            ends = im.states[t + 1].clone()
            total = im.rewards[t].clone()
            cont = go[t].clone()
            for k in range(2, left + 1):  # the k-th step belongs where the depth is k or more
                s = t + k - 1
                on = depth >= k
                total = th.where(on, total + gamma * cont * (im.rewards[s] - alpha * im.log_probs[s]), total)
                cont = th.where(on, gamma * cont * go[s], cont)
                ends = th.where(on[..., None], im.states[s + 1], ends)
            reached = th.as_tensor(self._rng.random((E, m))) <= im.continuation[t]
            parts.append((im.states[t][reached], im.actions[t][reached], total[reached], ends[reached], cont[reached]))
        states, actions, rewards, ends, cont = (th.cat(x) for x in zip(*parts, strict=True))
        return Batch(states.float(), actions.float(), (rewards / unit).float(), ends.float(), cont.float())


def both(h: int, **more: Any) -> dict:
    return dict(imagination=dict(horizon=h, rollout_length=h, **more))


FREE = dict(on_policy_correction=False)
ARMS: dict[str, tuple[type, dict]] = {
    "default": (DPI, {}),
    "free_default": (DPI, dict(imagination=FREE)),
    "plain8": (DPI, both(8)),
    "plain8_few": (DPI, both(8, n_rollout_steps=8000)),
    "plain8_window": (DPI, dict(imagination=dict(horizon=8))),
    "plain8_uncorrected": (DPI, both(8, **FREE)),
    "block8": (Trial, both(8)),
    "block8_window": (Trial, dict(imagination=dict(horizon=8))),
    "real8": (Trial, dict(starts="real", **both(8))),
    "real8_uncorrected": (Trial, dict(starts="real", **both(8, **FREE))),
    "last8_real": (Trial, dict(starts="real", weights="last", **both(8))),
    "last8_real_uncorrected": (Trial, dict(starts="real", weights="last", **both(8, **FREE))),
    "real5": (Trial, dict(starts="real", **both(5))),
    "real8_state": (Trial, dict(starts="real", weights="state", **both(8))),
    "gradient8_window": (Trial, dict(of_gradient="mean", imagination=dict(horizon=8))),
}


def run(task: str, seed: int, steps: int, arm: str, every: int = 1000) -> None:
    done = list(csv.DictReader(OUT.open())) if OUT.exists() else []
    if any((r["task"], r["seed"], r["arm"]) == (task, str(seed), arm) and int(r["steps"]) >= steps for r in done):
        return
    cls, kw = ARMS[arm]
    env, test = gym.make(task), gym.make(task)
    test.reset(seed=10_000 + seed)
    model = cls("MlpPolicy", env, seed=seed, **kw)
    spent, balanced = 0.0, 0
    while model.num_timesteps < steps and balanced < 3:
        t = time.process_time()
        model.learn(every, reset_num_timesteps=False, log_interval=None)
        spent += time.process_time() - t
        mean, std = evaluate_policy(model, test, 5, warn=False)
        balanced = balanced + 1 if task.startswith("InvertedDouble") and mean > 9000 else 0
        weights = " ".join(f"{w:.3f}" for w in getattr(model, "gradient_weights", getattr(model, "weights", [])))
        new = not OUT.exists()
        with OUT.open("a", newline="") as f:
            w = csv.writer(f)
            if new:
                w.writerow(("task", "arm", "seed", "steps", "return", "std", "cpu", "weights"))
            w.writerow((task, arm, seed, model.num_timesteps, f"{mean:.1f}", f"{std:.1f}", f"{spent:.0f}", weights))
        print(task, arm, seed, model.num_timesteps, f"{mean:.0f} +- {std:.0f}", f"{spent:.0f} s", weights, flush=True)


if __name__ == "__main__":
    for name in sys.argv[4:]:
        run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), name)
