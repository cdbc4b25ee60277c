"""What lies between the matrix products, a loop each.

Shapes: ``E`` members, ``n`` rows, states ``[n, dx]``, actions ``[n, du]``. All arrays are contiguous and of single precision;
numbers are cast to it.
"""

import math

import numpy as np

from sb3_dpi.world_model.backends import arrays
from sb3_dpi.world_model.backends.arrays import Floats
from sb3_dpi.world_model.backends.compilation import kernel

f32 = np.float32
SIXTH = f32(1.0 / 6.0)
NORM_EPSILON = f32(arrays.NORM_EPSILON)
TANH_EPSILON = f32(arrays.TANH_EPSILON)
HALF_LOG_TWO_PI = f32(arrays.HALF_LOG_TWO_PI)
CHANGE_LIMIT = f32(arrays.CHANGE_LIMIT)

# ---------------------------------------------------------------------- layers


@kernel
def activate(sums: Floats, normalised: bool, inverse: Floats, out: Floats) -> None:
    """Perhaps normalise ``sums [E, n, width]``, which become the input of hardswish, and take that.

    ``inverse [E, n]`` becomes one over the standard deviation by which a row was divided; the last column of
    ``out [E, n, width + 1]`` is left.
    """
    n_members, n, width = sums.shape
    for e in range(n_members):
        for i in range(n):
            z, h = sums[e, i], out[e, i]
            if normalised:
                mean, variance = f32(0.0), f32(0.0)
                for j in range(width):
                    mean += z[j]
                mean /= f32(width)
                for j in range(width):
                    variance += (z[j] - mean) * (z[j] - mean)
                inverse[e, i] = f32(1.0) / math.sqrt(variance / f32(width) + NORM_EPSILON)
                for j in range(width):
                    z[j] = (z[j] - mean) * inverse[e, i]
            for j in range(width):
                h[j] = z[j] * min(max(z[j] + f32(3.0), f32(0.0)), f32(6.0)) * SIXTH


@kernel
def activate_backward(sums: Floats, normalised: bool, inverse: Floats, slope: Floats) -> None:
    """From the derivative by the activation's output to that by the layer's sum, in place."""
    n_members, n, width = sums.shape
    for e in range(n_members):
        for i in range(n):
            z, by = sums[e, i], slope[e, i]
            for j in range(width):
                v = z[j]
                inner = (f32(2.0) * v + f32(3.0)) * SIXTH
                by[j] *= f32(0.0) if v <= f32(-3.0) else (f32(1.0) if v >= f32(3.0) else inner)
            if normalised:
                mean, along = f32(0.0), f32(0.0)
                for j in range(width):
                    mean += by[j]
                    along += by[j] * z[j]
                mean /= f32(width)
                along /= f32(width)
                for j in range(width):
                    by[j] = (by[j] - mean - z[j] * along) * inverse[e, i]


@kernel
def outer(slope: Floats, flat: Floats, out: Floats) -> None:
    """From ``slope [E, n, 1]`` by a single output to ``out [E, n, width]`` by what the last layer reads: BLAS is slow at that.

    A slope ``[1, n, 1]`` is the same for all members.
    """
    n_members, n, width = out.shape
    start = flat.shape[1] - 1 - width
    for e in range(n_members):
        weight, by = flat[e, start : start + width], slope[e if slope.shape[0] > 1 else 0]
        for i in range(n):
            for j in range(width):
                out[e, i, j] = by[i, 0] * weight[j]


@kernel
def join(states: Floats, actions: Floats, dx: int, inputs: Floats) -> None:
    """Put the first dx columns of ``states`` and then actions into what a layer reads, as far as that has columns."""
    for i in range(len(inputs)):
        for j in range(dx):
            inputs[i, j] = states[i, j]
        for j in range(dx, inputs.shape[1] - 1):
            inputs[i, j] = actions[i, j - dx]


@kernel
def add_columns(total: Floats, columns: Floats) -> None:
    """Add columns to the first of ``total``."""
    for i in range(columns.shape[0]):
        for j in range(columns.shape[1]):
            total[i, j] += columns[i, j]


# ---------------------------------------------------------------------- losses and steps


@kernel
def huber(outputs: Floats, targets: Floats) -> float:
    """Mean Huber loss over members; ``outputs [E, n, n_out]`` become the derivative of each member's own mean loss.

    ``targets`` are of the same shape, or the same for all members ``[1, n, n_out]``.
    """
    n_members, n, n_out = outputs.shape
    share, loss = f32(1.0 / (n * n_out)), f32(0.0)
    for e in range(n_members):
        goal = targets[e if targets.shape[0] > 1 else 0]
        for i in range(n):
            for j in range(n_out):
                error = outputs[e, i, j] - goal[i, j]
                size = abs(error)
                loss += f32(0.5) * error * error if size <= f32(1.0) else size - f32(0.5)
                outputs[e, i, j] = share * min(max(error, f32(-1.0)), f32(1.0))
    return float(loss * share / f32(n_members))


@kernel
def cross_entropy(logits: Floats, labels: Floats) -> None:
    """Turn ``logits [n]`` into the derivative of the mean cross entropy with ``labels [n]``."""
    share = f32(1.0 / len(logits))
    for i in range(len(logits)):
        logits[i] = share * (f32(1.0) / (f32(1.0) + math.exp(-logits[i])) - labels[i])


@kernel
def adam_step(
    flat: Floats,
    gradient: Floats,
    first: Floats,
    second: Floats,
    rate: float,
    correction: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> None:
    """One step of Adam on ``[E, P]``; ``rate`` is divided by one bias correction, the second moments by ``correction``."""
    rate_1, keep_1, keep_2, small = f32(rate), f32(beta_1), f32(beta_2), f32(epsilon)
    take_1, take_2, scale = f32(1.0 - beta_1), f32(1.0 - beta_2), f32(1.0 / correction)
    for e in range(flat.shape[0]):
        for i in range(flat.shape[1]):
            g = gradient[e, i]
            first[e, i] = keep_1 * first[e, i] + take_1 * g
            second[e, i] = keep_2 * second[e, i] + take_2 * g * g
            flat[e, i] -= rate_1 * first[e, i] / (math.sqrt(second[e, i] * scale) + small)


@kernel
def polyak(slow: Floats, flat: Floats, tau: float) -> None:
    """Move ``slow [E, P]`` by the share tau towards ``flat``."""
    share = f32(tau)
    for e in range(flat.shape[0]):
        for i in range(flat.shape[1]):
            slow[e, i] += share * (flat[e, i] - slow[e, i])


@kernel
def soft_targets(
    rewards: Floats,
    continuation: Floats,
    values: Floats,
    log_probs: Floats,
    limits: tuple[float, float],
    temperature: float,
    gamma: float,
    targets: Floats,
) -> float:
    """Soft Bellman targets ``[n]`` from ``values [2, n]`` of the slow networks; their mean."""
    low, high, alpha, discount = f32(limits[0]), f32(limits[1]), f32(temperature), f32(gamma)
    mean = 0.0
    for i in range(len(targets)):
        value = min(max(min(values[0, i], values[1, i]), low), high) - alpha * log_probs[i]
        targets[i] = rewards[i] + discount * continuation[i] * value
        mean += targets[i] / len(targets)
    return mean


# ---------------------------------------------------------------------- the squashed Gaussian


@kernel
def halves(outputs: Floats, first: Floats, second: Floats) -> None:
    """Copy both halves of the columns of ``outputs [n, 2 du]``."""
    n, du = first.shape
    for i in range(n):
        for j in range(du):
            first[i, j] = outputs[i, j]
            second[i, j] = outputs[i, du + j]


@kernel
def log_density(noise: Floats, log_stds: Floats, log_slopes: Floats, log_probs: Floats) -> None:
    """Log-probabilities ``[n]`` of squashed draws; ``log_slopes [n, du]`` are the logs of the derivative of tanh."""
    n, du = noise.shape
    for i in range(n):
        total = f32(0.0)
        for j in range(du):
            total += f32(-0.5) * noise[i, j] * noise[i, j] - log_stds[i, j] - HALF_LOG_TWO_PI - log_slopes[i, j]
        log_probs[i] = total


@kernel
def sample_backward(
    noise: Floats,
    actions: Floats,
    stds: Floats,
    bounded: Floats,
    half: float,
    by_input: Floats,
    weights: Floats,
    temperature: float,
    slope: Floats,
) -> None:
    """From derivatives by actions and log-probabilities to those by the network's outputs, ``slope [n, 2 du]``.

    The last columns of ``by_input [n, dx + du]`` are the derivative by the actions, ``-temperature * weights [n]`` that by the
    log-probabilities.
    """
    n, du = noise.shape
    dx = by_input.shape[1] - du
    for i in range(n):
        by_log_prob = -f32(temperature) * weights[i]
        for j in range(du):
            u = actions[i, j]
            inner = f32(1.0) - u * u
            by_sum = inner * (by_input[i, dx + j] + by_log_prob * f32(2.0) * u / (inner + TANH_EPSILON))
            slope[i, j] = by_sum
            by_log_std = by_sum * stds[i, j] * noise[i, j] - by_log_prob
            slope[i, du + j] = by_log_std * f32(half) * (f32(1.0) - bounded[i, j] * bounded[i, j])


# ---------------------------------------------------------------------- imagined steps


@kernel
def follow(
    outputs: Floats,
    states: Floats,
    residuals: Floats,
    gain: Floats,
    offset: Floats,
    reward_mean: float,
    reward_std: float,
    low: Floats,
    high: Floats,
    following: Floats,
    rewards: Floats,
    inside: Floats,
    within: Floats,
) -> None:
    """Turn a model's ``outputs [n, dx + 1]`` into next states and rewards, the latter added to their residuals.

    Behind the states ``[n, dx + 1]`` stands a column that is left.
    ``inside [n, dx + 1]`` and ``within [n, dx]`` become one where predictions and states met no limit, else zero.
    """
    n, dx = within.shape
    mean, std = f32(reward_mean), f32(reward_std)
    for i in range(n):
        for j in range(dx + 1):
            y = min(max(outputs[i, j], -CHANGE_LIMIT), CHANGE_LIMIT)
            inside[i, j] = f32(1.0) if y == outputs[i, j] else f32(0.0)
            outputs[i, j] = y
        for j in range(dx):
            free = residuals[i, j] + states[i, j] + offset[j] + gain[j] * outputs[i, j]
            clipped = min(max(free, low[j]), high[j])
            within[i, j] = f32(1.0) if clipped == free else f32(0.0)
            following[i, j] = clipped
        rewards[i] += mean + std * outputs[i, dx]


@kernel
def follow_backward(
    by_input: Floats,
    by_continuation: Floats,
    weights: Floats,
    gain: Floats,
    reward_std: float,
    inside: Floats,
    within: Floats,
    by_state: Floats,
    slope: Floats,
) -> None:
    """From derivatives by next states and rewards to those by states and the model's outputs, ``slope [n, dx + 1]``.

    The first columns of ``by_input [n, dx + du]`` and ``by_continuation [n, dx]`` add up to the derivative by the next states,
    ``weights [n]`` are that by the rewards.
    """
    n, dx = by_state.shape
    std = f32(reward_std)
    for i in range(n):
        for j in range(dx):
            by_state[i, j] = (by_input[i, j] + by_continuation[i, j]) * within[i, j]
            slope[i, j] = by_state[i, j] * gain[j] * inside[i, j]
        slope[i, dx] = weights[i] * std * inside[i, dx]


@kernel
def survive(logits: Floats, alive: Floats, chances: Floats, still_alive: Floats) -> None:
    """Probabilities that an episode goes on, and that it has come so far; ``logits`` are of its end; all ``[n]``."""
    for i in range(len(logits)):
        chances[i] = f32(1.0) / (f32(1.0) + math.exp(logits[i]))
        still_alive[i] = alive[i] * chances[i]


@kernel
def survive_backward(by_alive: Floats, still_alive: Floats, chances: Floats, slope: Floats) -> None:
    """From derivatives by having come so far to those by the logits, ``slope [n]``."""
    for i in range(len(slope)):
        slope[i] = -by_alive[i] * still_alive[i] * (f32(1.0) - chances[i])


@kernel
def earn(
    discount: float,
    temperature: float,
    alive: Floats,
    rewards: Floats,
    log_probs: Floats,
    chances: Floats,
    weights: Floats,
    by_alive: Floats,
) -> float:
    """What a step earns; sets its ``weights [n]``, and takes the derivative by having come so far one step back."""
    share, alpha, objective = f32(discount), f32(temperature), f32(0.0)
    for i in range(len(rewards)):
        gain = rewards[i] - alpha * log_probs[i]
        weights[i] = share * alive[i]
        objective += weights[i] * gain
        by_alive[i] = share * gain + chances[i] * by_alive[i]
    return float(objective)
