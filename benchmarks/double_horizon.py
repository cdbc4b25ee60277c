"""Double-horizon model-based policy optimisation (Kubo et al. 2025): its loop in torch, with parts to change, as a peer.

python benchmarks/double_horizon.py --env Walker2d-v5 --seeds 1 2 --steps 30000 [--set width=128 ...] [--arm NAME]

Long rollouts of the current policy in the model, from states of all of memory, give states to begin at. Short rollouts from
these carry both the critic's target, the return of the rollout closed by slow critics, and the policy's gradient. The
function that says when episodes end is given. Rows go to results/dpi/double_horizon.csv; what is there is not done again.

Shapes: B states, K members, Q critics, H short steps, o observations, a actions, all in float32.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

RESULTS = Path(__file__).parents[1] / "results" / "dpi" / "double_horizon.csv"
FIELDS = ("task", "arm", "seed", "steps", "return", "cpu_seconds", "r_squared", "fit_steps")
LOG_STD_LOW, LOG_STD_HIGH = -8.0, 2.0
FIT_LOOK = 50
"""Steps of the model between two looks at the held-out data"""


@dataclass(frozen=True)
class Recipe:
    """The published numbers, where nothing else is said."""

    members: int = 8
    layers: int = 4
    width: int = 256
    layer_norm: bool = True
    dropout: float = 0.01
    weight_decay: float = 1e-5
    fit_batch: int = 256
    """of a member; they take batches of 2048"""
    fit_steps: int = 600
    """of Adam, at most"""
    patience: int = 4
    """looks at the held-out data without gain"""
    critics: int = 5
    critic_layers: int = 3
    critic_width: int = 256
    actor_width: int = 256
    batch: int = 256
    short: int = 5
    long: int = 20
    long_every: int = 20
    """updates"""
    kept_rollouts: int = 10
    imagined_starts: bool = True
    epoch: int = 1000
    """real steps between two fits of the model"""
    random_steps: int = 1000
    updates_a_step: float = 1.0
    gamma: float = 0.995
    tau: float = 0.005
    learning_rate: float = 3e-4
    first_temperature: float = 0.1
    critic_first: float = 0.25
    """of the updates after a fit train the critic alone"""
    fresh_optimizers: bool = True


# ---------------------------------------------------------------------- networks


class Stack(nn.Module):
    """``n`` networks side by side: ``[n, B, i] -> [n, B, o]``."""

    def __init__(self, n: int, sizes: tuple[int, ...], layer_norm: bool, first_norm: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(th.empty(n, i, o).uniform_(-1.0, 1.0) / math.sqrt(i)) for i, o in pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(th.zeros(n, 1, o)) for o in sizes[1:])
        self.gains = nn.ParameterList(nn.Parameter(th.ones(n, 1, o)) for o in sizes[1:-1])
        self.shifts = nn.ParameterList(nn.Parameter(th.zeros(n, 1, o)) for o in sizes[1:-1])
        self.norms = [layer_norm and (first_norm or i > 0) for i in range(len(sizes) - 2)]
        self.dropout = dropout

    def forward(self, x: th.Tensor) -> th.Tensor:
        last = len(self.weights) - 1
        for i in range(last):
            x = th.baddbmm(self.biases[i], x, self.weights[i])
            if self.norms[i]:
                x = F.layer_norm(x, x.shape[-1:]) * self.gains[i] + self.shifts[i]
            x = F.silu(x)
            if self.dropout and self.training:
                x = F.dropout(x, self.dropout * (1.0 - i / last))
        return th.baddbmm(self.biases[last], x, self.weights[last])


class Actor(nn.Module):
    """A Gaussian behind tanh."""

    def __init__(self, n_obs: int, n_actions: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_obs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * n_actions)
        )

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor]:
        """:return: actions in [-1, 1] ``[B, a]``, their log-probabilities ``[B]``"""
        mean, log_std = self.net(obs).chunk(2, -1)
        log_std = LOG_STD_LOW + 0.5 * (LOG_STD_HIGH - LOG_STD_LOW) * (1.0 + th.tanh(log_std))
        noise = th.zeros_like(mean) if deterministic else th.randn_like(mean)
        before = mean + log_std.exp() * noise
        log_prob = (-0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)
        return th.tanh(before), log_prob - (2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))).sum(-1)


class Model:
    """Gaussian members that predict change of state and reward, in standard deviations of what was seen."""

    def __init__(self, n_obs: int, n_actions: int, recipe: Recipe) -> None:
        sizes = (n_obs + n_actions, *[recipe.width] * recipe.layers, n_obs + 1)
        self.net = Stack(recipe.members, sizes, recipe.layer_norm, False, recipe.dropout)
        self.log_noise = nn.Parameter(th.full((recipe.members, 1, n_obs + 1), -1.0))
        self.recipe = recipe
        self.r_squared, self.steps = 0.0, 0

    def units(self, obs: th.Tensor, change: th.Tensor) -> None:
        """Means and standard deviations of observations ``[N, o]`` and of change and reward ``[N, o + 1]``."""
        self.mean, self.std = obs.mean(0), obs.std(0).clamp_min(1e-6)
        self.out_mean, self.out_std = change.mean(0), change.std(0).clamp_min(1e-6)

    def inputs(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """:return: ``[B, o + a]``"""
        return th.cat([(obs - self.mean) / self.std, actions], -1)

    def noise(self) -> th.Tensor:
        """:return: standard deviations ``[K, 1, o + 1]``, in those of the outputs"""
        return self.log_noise.exp() + 1e-3

    def fit(self, obs: th.Tensor, actions: th.Tensor, change: th.Tensor) -> None:
        """Go on until a fifth of the data, held out, gains no more."""
        latest = min(len(obs), self.recipe.epoch)
        if hasattr(self, "mean"):
            self.r_squared = self.explained(obs[-latest:], actions[-latest:], change[-latest:])
        self.units(obs, change)
        x, y = self.inputs(obs, actions), (change - self.out_mean) / self.out_std
        order = th.randperm(len(x))
        held, used = order[: len(x) // 5], order[len(x) // 5 :]
        parameters = [*self.net.requires_grad_(True).parameters(), self.log_noise]
        optimizer = th.optim.AdamW(parameters, lr=1e-3, weight_decay=self.recipe.weight_decay, fused=True)
        best, kept, worse, k = math.inf, [p.detach().clone() for p in parameters], 0, self.recipe.members
        for step in range(1, self.recipe.fit_steps + 1):
            self.steps = step
            self.net.train()
            rows = used[th.randint(len(used), (k, self.recipe.fit_batch))]
            optimizer.zero_grad()
            self.loss(x[rows], y[rows]).backward()
            optimizer.step()
            if step % FIT_LOOK:
                continue
            self.net.eval()
            with th.no_grad():
                loss = float(self.loss(x[held].expand(k, -1, -1), y[held].expand(k, -1, -1)))
            worse = 0 if loss < best else worse + 1
            if loss < best:
                best, kept = loss, [p.detach().clone() for p in parameters]
            if worse >= self.recipe.patience:
                break
        with th.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
        self.net.eval().requires_grad_(False)

    def loss(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """:return: negative log-likelihood, summed over members"""
        noise = self.noise()
        loss: th.Tensor = (0.5 * ((y - self.net(x)) / noise).square() + noise.log()).mean((1, 2)).sum()
        return loss

    @th.no_grad()
    def explained(self, obs: th.Tensor, actions: th.Tensor, change: th.Tensor) -> float:
        """:return: R squared of the members' mean, before these steps are learned, mean over outputs"""
        x = self.inputs(obs, actions)
        predicted = self.out_mean + self.out_std * self.net(x.expand(self.recipe.members, -1, -1)).mean(0)
        return float((1.0 - (change - predicted).square().mean(0) / change.var(0).clamp_min(1e-12)).mean())

    def step(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Each state by a member drawn anew. :return: next observations ``[B, o]``, rewards ``[B]``"""
        k = self.recipe.members
        order = th.randperm(len(obs))
        back = th.argsort(order)
        x = self.inputs(obs, actions)[order].view(k, len(obs) // k, -1)
        y = self.net(x)
        y = (y + self.noise().detach() * th.randn_like(y)).flatten(0, 1)[back]
        change = self.out_mean + self.out_std * y
        return obs + change[:, :-1], change[:, -1]


# ---------------------------------------------------------------------- when episodes end


def healthy(task: str) -> Callable[[th.Tensor], th.Tensor]:
    """:return: function of observations ``[B, o]`` that is 1 where an episode goes on, as Gymnasium's version 5 has it"""

    def hopper(obs: th.Tensor) -> th.Tensor:
        return ((obs[:, 0] > 0.7) & (obs[:, 1].abs() < 0.2) & (obs[:, 1:].abs() < 100.0).all(1)).float()

    def walker(obs: th.Tensor) -> th.Tensor:
        return ((obs[:, 0] > 0.8) & (obs[:, 0] < 2.0) & (obs[:, 1].abs() < 1.0)).float()

    def double_pendulum(obs: th.Tensor) -> th.Tensor:
        sin1, sin2, cos1, cos2 = obs[:, 1], obs[:, 2], obs[:, 3], obs[:, 4]
        return (0.6 * (cos1 + cos1 * cos2 - sin1 * sin2) > 1.0).float()

    known = {"Hopper": hopper, "Walker2d": walker, "InvertedDoublePendulum": double_pendulum}
    return known.get(task.split("-")[0], lambda obs: th.ones(len(obs)))


# ---------------------------------------------------------------------- the loop


class Learner:
    """Actor, critics, temperature, and the states that short rollouts begin at."""

    def __init__(self, task: str, recipe: Recipe, n_obs: int, n_actions: int) -> None:
        self.recipe, self.goes_on = recipe, healthy(task)
        self.model = Model(n_obs, n_actions, recipe)
        self.actor = Actor(n_obs, n_actions, recipe.actor_width)
        sizes = (n_obs + n_actions, *[recipe.critic_width] * recipe.critic_layers, 1)
        self.critics, self.slow = (Stack(recipe.critics, sizes, True, True) for _ in range(2))
        self.slow.load_state_dict(self.critics.state_dict())
        self.log_temperature = nn.Parameter(th.tensor(math.log(recipe.first_temperature)))
        self.target_entropy = -float(n_actions)
        self.starts: list[th.Tensor] = []
        self.begin_anew()

    def begin_anew(self) -> None:
        """Optimisers without memory."""
        rate = self.recipe.learning_rate
        self.critic_optimizer = th.optim.Adam(self.critics.parameters(), lr=rate, fused=True)
        self.actor_optimizer = th.optim.Adam(self.actor.parameters(), lr=rate, fused=True)
        self.temperature_optimizer = th.optim.Adam([self.log_temperature], lr=rate)

    def scaled(self, obs: th.Tensor) -> th.Tensor:
        """:return: observations in standard deviations"""
        return (obs - self.model.mean) / self.model.std

    def q(self, critics: Stack, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """:return: values in rewards ``[Q, B]``"""
        x = th.cat([self.scaled(obs), actions], -1)
        low, high = self.value_range
        standard: th.Tensor = critics(x.expand(self.recipe.critics, -1, -1)).squeeze(-1)
        return 0.5 * (low + high) + 0.5 * (high - low) * standard

    def bound_values(self, rewards: th.Tensor) -> None:
        """The 1 and 99 % quantiles of rewards, for ever."""
        low, high = np.quantile(rewards.numpy(), [0.01, 0.99]) / (1.0 - self.recipe.gamma)
        self.value_range = float(low), float(max(high, low + 1e-3))

    @th.no_grad()
    def imagine_starts(self, memory: th.Tensor) -> None:
        """A long rollout of the current policy from states of all of memory: the living states of all its steps."""
        obs = memory[th.randint(len(memory), (self.recipe.batch,))]
        alive, found = th.ones(len(obs)), [obs]
        for _ in range(self.recipe.long):
            actions, _ = self.actor(self.scaled(obs))
            obs, _ = self.model.step(obs, actions)
            alive = alive * self.goes_on(obs) * (self.scaled(obs).abs().amax(1) < 20.0)
            found.append(obs[alive > 0.0])
        self.starts = [*self.starts[1 - self.recipe.kept_rollouts :], th.cat(found)]

    def update(self, memory: th.Tensor, with_actor: bool) -> None:
        """One short rollout: a step of the critics on the target it carries, one of the policy along its gradient."""
        source = th.cat(self.starts) if self.recipe.imagined_starts else memory
        first = source[th.randint(len(source), (self.recipe.batch,))]
        gamma, temperature = self.recipe.gamma, self.log_temperature.exp().detach()
        obs, weight, soft_return = first, th.ones(len(first)), th.zeros(len(first))
        with th.set_grad_enabled(with_actor):
            first_action, first_log_prob = actions, log_prob = self.actor(self.scaled(obs))
            for step in range(self.recipe.short):
                soft_return = soft_return + weight * (-temperature * log_prob if step else 0.0)
                obs, rewards = self.model.step(obs, actions)
                soft_return = soft_return + weight * rewards
                weight = weight * gamma * self.goes_on(obs)
                actions, log_prob = self.actor(self.scaled(obs))
            soft_return = soft_return - weight * temperature * log_prob
            if with_actor:
                self.critics.requires_grad_(False)
                objective = soft_return - temperature * first_log_prob + weight * self.q(self.critics, obs, actions).mean(0)
                self.critics.requires_grad_(True)
                self.actor_optimizer.zero_grad()
                (-objective.mean() / self.unit).backward()
                nn.utils.clip_grad_norm_(self.actor.parameters(), 10.0)
                self.actor_optimizer.step()
                self.temperature_optimizer.zero_grad()
                (-self.log_temperature * (first_log_prob.detach().mean() + self.target_entropy)).backward()
                self.temperature_optimizer.step()
        with th.no_grad():
            two = th.randperm(self.recipe.critics)[:2]
            closing = self.q(self.slow, obs, actions)[two].amin(0)
            target = (soft_return.detach() + weight * closing).clamp(*self.value_range)
        self.critic_optimizer.zero_grad()
        loss = ((self.q(self.critics, first, first_action.detach()) - target) / self.unit).square().mean(1).sum()
        loss.backward()
        self.critic_optimizer.step()
        with th.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.critics.parameters(), strict=True):
                slow.lerp_(fast, self.recipe.tau)

    @property
    def unit(self) -> float:
        """Half the range of values."""
        return 0.5 * (self.value_range[1] - self.value_range[0])

    def act(self, obs: np.ndarray, deterministic: bool) -> np.ndarray:
        """:return: an action in [-1, 1]"""
        with th.no_grad():
            actions, _ = self.actor(self.scaled(th.as_tensor(obs, dtype=th.float32)[None]), deterministic)
        taken: np.ndarray = actions[0].numpy()
        return taken


def evaluate(learner: Learner, env: gym.Env[Any, Any], episodes: int) -> float:
    """:return: mean return without noise"""
    total = 0.0
    for _ in range(episodes):
        obs, over = env.reset()[0], False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(units(env, learner.act(obs, True)))
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def units(env: gym.Env[Any, Any], action: np.ndarray) -> np.ndarray:
    """:return: an action in units of the environment"""
    space: Any = env.action_space
    scaled: np.ndarray = space.low + 0.5 * (action + 1.0) * (space.high - space.low)
    return scaled.astype(np.float32)


def learn(task: str, seed: int, steps: int, recipe: Recipe, episodes: int) -> Iterator[tuple[int, float, float, float, int]]:
    """:return: after each epoch: steps, return, processor seconds of learning, R squared, steps of the fit"""
    th.manual_seed(seed)
    rng = np.random.default_rng(seed)
    env, test = gym.make(task), gym.make(task)
    test.reset(seed=10_000 + seed)
    obs, _ = env.reset(seed=seed)
    assert env.observation_space.shape is not None and env.action_space.shape is not None
    n_obs, n_actions = env.observation_space.shape[0], env.action_space.shape[0]
    learner = Learner(task, recipe, n_obs, n_actions)
    seen, acted, change = (np.zeros((steps, n), dtype=np.float32) for n in (n_obs, n_actions, n_obs + 1))
    spent, begun = 0.0, time.process_time()
    for t in range(steps):
        acted[t] = rng.uniform(-1.0, 1.0, n_actions) if t < recipe.random_steps else learner.act(obs, False)
        following, reward, terminated, truncated, _ = env.step(units(env, acted[t]))
        seen[t], change[t] = obs, np.append(following - obs, float(reward))
        obs = env.reset()[0] if terminated or truncated else following
        if (t + 1) % recipe.epoch or t + 1 < recipe.random_steps:
            continue
        memory = th.from_numpy(seen[: t + 1])
        learner.model.fit(memory, th.from_numpy(acted[: t + 1]), th.from_numpy(change[: t + 1]))
        learner.bound_values(th.from_numpy(change[: t + 1, -1]))
        if recipe.fresh_optimizers:
            learner.begin_anew()
        updates = round(recipe.updates_a_step * recipe.epoch)
        for i in range(updates):
            if recipe.imagined_starts and i % recipe.long_every == 0:
                learner.imagine_starts(memory)
            learner.update(memory, i >= recipe.critic_first * updates)
        spent += time.process_time() - begun
        yield t + 1, evaluate(learner, test, episodes), spent, learner.model.r_squared, learner.model.steps
        begun = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["Walker2d-v5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--episodes", type=int, default=3, help="of an evaluation, default: %(default)s")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="numbers of the recipe")
    parser.add_argument("--arm", default="published", help="name of what --set makes, default: %(default)s")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="default: results/dpi/double_horizon.csv")
    args = parser.parse_args()
    th.set_num_threads(1)
    kinds = {field.name: type(getattr(Recipe(), field.name)) for field in fields(Recipe)}
    given = dict(pair.split("=", 1) for pair in args.set)
    changes: dict[str, Any] = {k: bool(int(v)) if kinds[k] is bool else kinds[k](v) for k, v in given.items()}
    recipe = replace(Recipe(), **changes)
    for seed in args.seeds:
        for task in args.env:
            run(task, args.arm, seed, args.steps, recipe, args.episodes, args.csv)


def run(task: str, arm: str, seed: int, steps: int, recipe: Recipe, episodes: int, path: Path) -> None:
    """One run, unless it is there."""
    if path.exists():
        with path.open(newline="") as file:
            done = [row for row in csv.DictReader(file) if (row["task"], row["arm"], row["seed"]) == (task, arm, str(seed))]
        if done:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    for t, value, seconds, r_squared, fitted in learn(task, seed, steps, recipe, episodes):
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(FIELDS)
            writer.writerow((task, arm, seed, t, f"{value:.1f}", f"{seconds:.0f}", f"{r_squared:.4f}", fitted))
        is_new = False
        print(
            f"{task} {arm} {seed} {t}: {value:.0f}, {seconds:.0f} s, R2 {r_squared:.3f}, {fitted} steps of the model",
            flush=True,
        )


if __name__ == "__main__":
    main()
