"""Times of the world model's hot jobs in torch and as loops, at the default sizes of DPI, and of compiling the loops.

``OMP_NUM_THREADS=1 python benchmarks/backends.py``
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from sb3_dpi.trajopt.compilation import COMPILED
from sb3_dpi.world_model import backends

Job = Callable[[], Any]
GAMMA, TEMPERATURE, TAU, LOW, HIGH = 0.99, 0.03, 0.02, -1.0, 1.0
LOG_STDS = -3.0, 0.4


@dataclass(frozen=True)
class Sizes:
    """Of networks and batches."""

    dx: int = 17
    du: int = 6
    members: int = 5
    model_width: int = 128
    model_batch: int = 64
    width: int = 64
    """of the other networks"""
    termination_batch: int = 64
    critic_batch: int = 128
    updates: int = 10
    horizon: int = 4
    windows: int = 40
    """of each member"""


class Network:
    """Parameters, and Adam of them.

    :param rng: draws the parameters
    :param members: E
    :param sizes: of the layers
    :param layer_norm: whether hidden layers are normalised
    """

    def __init__(self, rng: np.random.Generator, members: int, sizes: tuple[int, ...], layer_norm: bool = False):
        self.sizes, self.layer_norm = sizes, layer_norm
        parts = []
        for n_in, n_out in pairwise(sizes):
            parts += [rng.normal(size=(members, n_in * n_out)) / np.sqrt(n_in), 0.3 * rng.normal(size=(members, n_out))]
        self.flat = th.nn.Parameter(th.as_tensor(np.concatenate(parts, axis=1), dtype=th.float32))
        self.optimizer = th.optim.Adam([self.flat], lr=1e-3)

    @property
    def arrays(self) -> backends.NetworkArrays:
        """As the loops see it."""
        return backends.NetworkArrays(backends.array_of(self.flat), self.sizes, self.layer_norm)

    def adam(self, n_steps: int) -> backends.AdamArrays:
        """:return: as the loops see the optimizer, before so many steps"""
        return backends.adam_of(self.flat, self.optimizer, n_steps)

    def __call__(self, inputs: th.Tensor, flat: th.Tensor | None = None) -> th.Tensor:
        """
        Evaluate all members in torch.

        :param inputs: ``[E, n, n_in]`` or ``[1, n, n_in]``
        :param flat: other parameters
        :return: ``[E, n, n_out]``
        """
        flat = self.flat if flat is None else flat
        start, hidden = 0, inputs.expand(len(flat), *inputs.shape[1:])
        for i, (n_in, n_out) in enumerate(pairwise(self.sizes)):
            end = start + n_in * n_out
            weight, bias = flat[:, start:end].view(-1, n_in, n_out), flat[:, None, end : end + n_out]
            start = end + n_out
            hidden = th.baddbmm(bias, hidden, weight)
            if i < len(self.sizes) - 2:
                hidden = functional.layer_norm(hidden, hidden.shape[-1:], eps=1e-5) if self.layer_norm else hidden
                hidden = functional.hardswish(hidden)
        return hidden

    def descend(self, loss: th.Tensor) -> None:
        """:param loss: on which torch takes a step"""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Problem:
    """Networks and data, all drawn from a seed.

    :param sizes: of all
    :param n_steps: of the fits
    :param deaths: whether episodes end
    :param critic_acts: whether the critic that closes windows reads actions
    :param seed: of all draws
    """

    def __init__(self, sizes: Sizes, n_steps: int = 20, deaths: bool = True, critic_acts: bool = True, seed: int = 0):
        rng = np.random.default_rng(seed)
        s, dx, du, E = sizes, sizes.dx, sizes.du, sizes.members
        self.sizes, self.deaths = sizes, deaths

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        self.model = Network(rng, E, (dx + du, s.model_width, s.model_width, dx + 1))
        self.termination = Network(rng, 1, (dx, s.width, s.width, 1))
        self.critic = Network(rng, 2, (dx + du, s.width, s.width, 1), layer_norm=True)
        self.closing = self.critic if critic_acts else Network(rng, 2, (dx, s.width, s.width, 1), layer_norm=True)
        self.slow = self.critic.flat.detach() + 0.1 * th.as_tensor(draw(*self.critic.flat.shape))
        self.actor = Network(rng, 1, (dx, s.width, s.width, 2 * du))
        self.inputs, self.targets = draw(n_steps, E, s.model_batch, dx + du), 2.0 * draw(n_steps, E, s.model_batch, dx + 1)
        self.states = draw(n_steps, s.termination_batch, dx)
        self.labels = (self.states[..., 0] > 0.5).astype(np.float32)
        shape = s.updates, s.critic_batch
        continuation = rng.random(shape).astype(np.float32)
        parts = draw(*shape, dx), np.tanh(draw(*shape, du)), draw(*shape), draw(*shape, dx), continuation, draw(*shape, du)
        self.batches = backends.CriticBatches(*parts)
        H, n = s.horizon, E * s.windows
        self.windows = backends.WindowArrays(draw(n, dx), 0.1 * draw(H, n, dx), 0.1 * draw(H, n), draw(H + 1, n, du))
        self.gain, self.offset = 0.1 + 0.3 * rng.random(dx).astype(np.float32), 0.1 * draw(dx)
        self.limits = np.full(dx, -2.0, np.float32), np.full(dx, 2.5, np.float32)
        self.reward_units = 0.1, 0.7


def loop_jobs(problem: Problem) -> dict[str, Job]:
    """
    The jobs as loops.

    :param problem: whose parameters they change
    :return: by name
    """
    p = problem
    policy = backends.PolicyArrays(p.actor.arrays, *LOG_STDS)
    model = backends.ModelArrays(p.model.arrays, p.gain, p.offset, *p.reward_units, *p.limits)
    ending = p.termination.arrays if p.deaths else None
    limits = TEMPERATURE, GAMMA, LOW, HIGH
    return {
        "fit_ensemble": lambda: backends.fit_ensemble(p.model.arrays, p.model.adam(len(p.inputs)), p.inputs, p.targets),
        "fit_classifier": lambda: backends.fit_classifier(
            p.termination.arrays, p.termination.adam(len(p.states)), p.states, p.labels
        ),
        "update_critic": lambda: backends.update_critic(
            p.critic.arrays, p.slow.numpy(), p.critic.adam(p.sizes.updates), TAU, policy, p.batches, *limits
        ),
        "window_gradient": lambda: backends.window_gradient(
            policy, model, ending, p.closing.arrays, p.windows, TEMPERATURE, GAMMA
        ),
    }


def sample(actor: Network, states: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """:return: actions ``[n, du]`` and their log-probabilities ``[n]`` in states ``[n, dx]``"""
    mean, raw = actor(states[None])[0].chunk(2, dim=1)
    low, high = LOG_STDS
    log_std = low + 0.5 * (high - low) * (th.tanh(raw) + 1.0)
    actions = th.tanh(mean + log_std.exp() * noise)
    density = th.distributions.Normal(0.0, 1.0).log_prob(noise) - log_std
    return actions, (density - th.log(1.0 - actions.square() + 1e-6)).sum(1)


def torch_fit_ensemble(problem: Problem) -> float:
    """:return: mean loss"""
    total = 0.0
    for inputs, targets in zip(th.as_tensor(problem.inputs), th.as_tensor(problem.targets), strict=True):
        loss = functional.smooth_l1_loss(problem.model(inputs), targets)
        problem.model.descend(loss * problem.sizes.members)
        total += float(loss.detach())
    return total / len(problem.inputs)


def torch_fit_classifier(problem: Problem) -> None:
    """Steps on the cross entropy."""
    for states, labels in zip(th.as_tensor(problem.states), th.as_tensor(problem.labels), strict=True):
        logits = problem.termination(states[None])[0, :, 0]
        problem.termination.descend(functional.binary_cross_entropy_with_logits(logits, labels))


def torch_update_critic(problem: Problem) -> tuple[float, float]:
    """:return: mean loss, and mean of the last targets"""
    critic, total, target = problem.critic, 0.0, th.zeros(())
    for arrays in zip(*problem.batches, strict=True):
        states, actions, rewards, following, continuation, noise = (th.as_tensor(array) for array in arrays)
        with th.no_grad():
            next_actions, log_probs = sample(problem.actor, following, noise)
            values = critic(th.cat([following, next_actions], dim=1)[None], problem.slow)[..., 0].amin(0)
            target = rewards + GAMMA * continuation * (values.clamp(LOW, HIGH) - TEMPERATURE * log_probs)
        guess = critic(th.cat([states, actions], dim=1)[None])[..., 0]
        loss = functional.huber_loss(guess, target.expand_as(guess))
        critic.descend(2.0 * loss)
        with th.no_grad():
            problem.slow.lerp_(critic.flat, TAU)
        total += float(loss.detach())
    return total / problem.sizes.updates, float(target.mean())


def torch_window_gradient(problem: Problem) -> tuple[np.ndarray, float, float]:
    """:return: gradient, J and entropy"""
    states, state_residuals, reward_residuals, noise = (th.as_tensor(array) for array in problem.windows)
    gain, offset, low, high = (th.as_tensor(array) for array in (problem.gain, problem.offset, *problem.limits))
    E, alive = problem.sizes.members, th.ones(len(states))
    objective, entropy = th.zeros(()), th.zeros(())
    for t in range(len(noise)):
        actions, log_probs = sample(problem.actor, states, noise[t])
        inputs = th.cat([states, actions], dim=1)
        entropy = entropy - log_probs.mean() / len(noise)
        if t == len(noise) - 1:
            rewards = problem.closing(inputs[None, :, : problem.closing.sizes[0]]).mean(0)[:, 0]
        else:
            outputs = problem.model(inputs.view(E, -1, inputs.shape[1])).flatten(0, 1).clamp(-8.0, 8.0)
            mean, std = problem.reward_units
            rewards = reward_residuals[t] + mean + std * outputs[:, -1]
        objective = objective + GAMMA**t * (alive * (rewards - TEMPERATURE * log_probs)).mean()
        if t < len(noise) - 1:
            states = (states + offset + gain * outputs[:, :-1] + state_residuals[t]).clamp(low, high)
            alive = alive * th.sigmoid(-problem.termination(states[None])[0, :, 0]) if problem.deaths else alive
    (gradient,) = th.autograd.grad(objective, [problem.actor.flat])
    return gradient[0].numpy(), float(objective.detach()), float(entropy.detach())


def torch_jobs(problem: Problem) -> dict[str, Job]:
    """
    The same in torch.

    :param problem: whose parameters they change
    :return: by name
    """
    jobs = torch_fit_ensemble, torch_fit_classifier, torch_update_critic, torch_window_gradient
    return {job.__name__.removeprefix("torch_"): lambda job=job: job(problem) for job in jobs}  # type: ignore[misc]


def milliseconds(job: Job, repetitions: int) -> float:
    """
    Time a job.

    :param job: what is timed, once before
    :param repetitions: of which the median is taken
    :return: median
    """
    job()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        job()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


COMPILE = """
import time
from backends import Problem, Sizes, loop_jobs
jobs = loop_jobs(Problem(Sizes(), 1))
start = time.process_time()
for job in jobs.values():
    job()
print(time.process_time() - start)
"""


def compile_seconds() -> tuple[float, float]:
    """
    Run all jobs once in a new process, with an empty cache and then from it.

    :return: CPU seconds of both
    """
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
        command = [sys.executable, "-c", COMPILE]
        first, second = (float(subprocess.run(command, env=env, check=True, stdout=-1).stdout) for _ in range(2))
    return first, second


def make_table(sizes: Sizes, repetitions: int) -> Table:
    """
    Time all jobs.

    :param sizes: of networks and batches
    :param repetitions: of each
    :return: a row each
    """
    table = Table("job", "torch, ms", "loops, ms", "ratio", title="one call, medians")
    loops, torch = loop_jobs(Problem(sizes)), torch_jobs(Problem(sizes))
    for name, job in loops.items():
        slow, fast = milliseconds(torch[name], repetitions), milliseconds(job, repetitions)
        table.add_row(name, f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}")
    return table


def main() -> None:
    """Print the table and the seconds of compilation."""
    console = Console()
    if not COMPILED:
        console.print("numba is not used: install the extra [fast]")
        return
    console.print(make_table(Sizes(), 30))
    console.print("compilation: {:.1f} s of one core, {:.1f} s from the cache".format(*compile_seconds()))


if __name__ == "__main__":
    main()
