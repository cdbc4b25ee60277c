"""The hot loops in numba where that is installed and the networks are such as it compiles; torch is the reference.

On small networks torch spends most of its time outside of arithmetic. The loops work on the memory of torch's parameters and
of the state of its optimizer: whoever looks at either sees what the other did.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_dpi.models import compiled, compiled_windows
from sb3_dpi.models.networks import StackedMLP

if TYPE_CHECKING:
    from sb3_dpi.models.actors import SquashedGaussian
    from sb3_dpi.models.critics import SoftTwinQ
    from sb3_dpi.models.imagination import Pool
    from sb3_dpi.models.problem import PlanningProblem


def serves(*networks: StackedMLP) -> bool:
    """
    Tell whether the compiled loops can stand in for torch.

    :param networks: all that take part
    :return: whether numba is there, and each has two hidden layers of one width on the CPU
    """
    return compiled.COMPILED and all(
        len(network.sizes) == 4 and network.sizes[1] == network.sizes[2] and network.flat.device.type == "cpu"
        for network in networks
    )


def _array(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _adam(optimizer: th.optim.Optimizer, network: StackedMLP, n_steps: int) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Moments of Adam in the optimizer's own memory, the steps before these, and the learning rate; counts the steps."""
    state: dict[str, Any] = optimizer.state[network.flat]
    if not state:
        state["step"] = th.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(network.flat), th.zeros_like(network.flat)
    taken = int(state["step"])
    state["step"] += n_steps
    return _array(state["exp_avg"]), _array(state["exp_avg_sq"]), taken, float(optimizer.param_groups[0]["lr"])


def fit_ensemble(
    networks: StackedMLP, optimizer: th.optim.Optimizer, inputs: th.Tensor, targets: th.Tensor, rows: np.ndarray
) -> float:
    """
    Steps of Adam on the Huber loss, each member on minibatches of its own.

    :param networks: E members
    :param optimizer: Adam of their parameters
    :param inputs: ``[n, n_in]``
    :param targets: ``[n, n_out]``
    :param rows: ``[K, E, B]``
    :return: mean loss
    """
    moments = _adam(optimizer, networks, len(rows))
    return float(
        compiled.fit_ensemble(_array(networks.flat), *moments, networks.sizes[1], _array(inputs), _array(targets), rows)
    )


def fit_classifier(
    network: StackedMLP, optimizer: th.optim.Optimizer, inputs: th.Tensor, labels: th.Tensor, rows: np.ndarray
) -> None:
    """
    Steps of Adam on the cross entropy.

    :param network: with one member and one output
    :param optimizer: Adam of its parameters
    :param inputs: ``[n, n_in]``
    :param labels: 0 or 1, ``[n]``
    :param rows: ``[K, B]``
    """
    first, second, taken, rate = _adam(optimizer, network, len(rows))
    flat = _array(network.flat)[0]
    compiled.fit_classifier(flat, first[0], second[0], taken, rate, network.sizes[1], _array(inputs), _array(labels), rows)


def update_critic(
    critic: "SoftTwinQ",
    pool: "Pool",
    rows: np.ndarray,
    noise: np.ndarray,
    actor: "SquashedGaussian",
    temperature: float,
    gamma: float,
) -> tuple[float, float]:
    """
    Updates of the twin Q-functions, see ``SoftTwinQ.update``.

    :param critic: what is updated
    :param pool: transitions, rewards in units of value
    :param rows: ``[K, B]``
    :param noise: ``[K, B, du]``
    :param actor: the policy
    :param temperature: alpha
    :param gamma: discount factor
    :return: mean loss, and the mean of the last targets
    """
    first, second, taken, rate = _adam(critic.optimizer, critic.networks, len(rows))
    loss, target = compiled.update_critic(
        _array(critic.networks.flat),
        _array(critic.targets.flat),
        first,
        second,
        taken,
        rate,
        critic.networks.sizes[1],
        critic.tau,
        _array(actor.network.flat)[0],
        actor.network.sizes[1],
        actor.log_std_low,
        actor.log_std_high,
        _array(pool.states),
        _array(pool.actions),
        _array(pool.rewards),
        _array(pool.next_states),
        _array(pool.survival),
        rows,
        noise,
        temperature,
        gamma,
        float(critic.low),
        float(critic.high),
    )
    return float(loss), float(target)


def window_gradient(problem: "PlanningProblem", noise: np.ndarray) -> tuple[th.Tensor, float, float]:
    """
    The gradient of imagined windows, see ``pathwise``.

    :param problem: policy, model, critic and windows
    :param noise: ``[H + 1, E, m, du]``
    :return: gradient ``[1, P]``, J and the entropy
    """
    actor, ensemble, critic, windows = problem.actor, problem.ensemble, problem.critic, problem.windows
    unit = critic.unit.float()
    mean, std = (float(array[-1] / critic.unit) for array in (ensemble.change_mean, ensemble.change_std))
    model = (
        _array(ensemble.networks.flat),
        ensemble.networks.sizes[1],
        _array(ensemble.change_gain),
        _array(ensemble.change_offset),
        np.float32(mean),
        np.float32(std),
        _array(ensemble.state_low.float()),
        _array(ensemble.state_high.float()),
    )
    H, E, m, dx = windows.state_residuals.shape
    gradient, objective, entropy = compiled_windows.window_gradient(
        (_array(actor.network.flat)[0], actor.network.sizes[1], actor.log_std_low, actor.log_std_high),
        model,
        (_array(ensemble.termination.flat)[0], ensemble.termination.sizes[1], bool(ensemble.sees_deaths)),
        (_array(critic.networks.flat), critic.networks.sizes[1], critic.networks.sizes[0]),
        _array(windows.states.view(E * m, dx)),
        _array(windows.state_residuals.view(H, E * m, dx)),
        _array((windows.reward_residuals / unit).view(H, E * m)),
        noise.reshape(H + 1, E * m, -1),
        problem.temperature,
        problem.gamma,
    )
    return th.as_tensor(gradient)[None], float(objective), float(entropy)
