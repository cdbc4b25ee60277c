"""The gradient of imagined windows by hand, for numba: the same mathematics as ``pathwise``, in plain loops.

Rows of members lie behind each other: window i of member e is row ``e m + i``. Derivatives are those of the mean over the
M windows. Of a tuple ``actor``: flat parameters, width, bounds of the log standard deviation; of ``model``: flat ``[E, P]``,
width, gain A and offset b of the change, mean and standard deviation of the reward in units of value, lowest and highest
state; of ``ending``: flat, width, whether any episode has ended; of ``critic``: flat ``[2, P]``, width, and how many numbers
it reads (state, or state and action).
"""

import math
from typing import Any

import numpy as np

from sb3_dpi.world_model.backends.compiled import FloatArray, _compiled, _part, backward, f32, forward, sample, sample_backward

CHANGE_LIMIT = f32(8.0)


@_part
def transition(model: Any, inputs: FloatArray, following: FloatArray, rewards: FloatArray, inside: FloatArray) -> Any:
    """Add the members' predictions to ``following`` and ``rewards``, which hold the residuals; what the backward pass needs.

    ``inside [M, dx + 1]`` becomes one where no limit was met, else zero.
    """
    flat, width, gain, offset, mean, std, _, _ = model
    n_members, n = flat.shape[0], inputs.shape[0]
    dx, m = following.shape[1], n // flat.shape[0]
    raw = np.empty((n, dx + 1), f32)
    traces = []
    for e in range(n_members):
        part = slice(e * m, e * m + m)
        outputs, trace = forward(flat[e], inputs.shape[1], width, dx + 1, False, inputs[part])
        raw[part] = outputs
        traces.append(trace)
    for i in range(n):
        for j in range(dx + 1):
            y = min(max(raw[i, j], -CHANGE_LIMIT), CHANGE_LIMIT)
            inside[i, j] = f32(1.0) if y == raw[i, j] else f32(0.0)
            if j < dx:
                following[i, j] += inputs[i, j] + offset[j] + gain[j] * y
            else:
                rewards[i] += mean + std * y
    return traces


@_part
def transition_backward(
    model: Any, inputs: FloatArray, traces: Any, inside: FloatArray, by_state: FloatArray, by_reward: FloatArray
) -> FloatArray:
    """From derivatives by next states and rewards to those by ``inputs``."""
    flat, width, gain, _, _, std, _, _ = model
    n_members, n, dx = flat.shape[0], by_state.shape[0], by_state.shape[1]
    m = n // n_members
    slope = np.empty((n, dx + 1), f32)
    for i in range(n):
        for j in range(dx):
            slope[i, j] = by_state[i, j] * gain[j] * inside[i, j]
        slope[i, dx] = by_reward[i] * std * inside[i, dx]
    result, nothing = np.empty_like(inputs), np.empty(0, f32)
    for e in range(n_members):
        part = slice(e * m, e * m + m)
        result[part] = backward(
            flat[e], inputs.shape[1], width, dx + 1, False, inputs[part], traces[e], slope[part], nothing, True
        )
    for i in range(n):
        for j in range(dx):
            result[i, j] += by_state[i, j]
    return result


@_part
def survive(ending: Any, states: FloatArray) -> Any:
    """Probabilities that episodes go on, and what the backward pass needs."""
    flat, width, sees_deaths = ending
    logits, trace = forward(flat, states.shape[1], width, 1, False, states)
    chances = np.ones(states.shape[0], f32)
    if sees_deaths:
        for i in range(states.shape[0]):
            chances[i] = f32(1.0) / (f32(1.0) + math.exp(logits[i, 0]))
    return chances, trace


@_part
def close(critic: Any, states: FloatArray, actions: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of the two Q-functions, and its weighted derivative by state and action."""
    flat, width, n_in = critic
    n, dx = states.shape
    inputs = np.empty((n, n_in), f32)
    inputs[:, :dx] = states
    if n_in > dx:
        inputs[:, dx:] = actions
    values, slope = np.zeros(n, f32), np.empty((n, 1), f32)
    for i in range(n):
        slope[i, 0] = f32(0.5) * weights[i]
    total, nothing = np.zeros((n, dx + actions.shape[1]), f32), np.empty(0, f32)
    for e in range(2):
        outputs, trace = forward(flat[e], n_in, width, 1, True, inputs)
        for i in range(n):
            values[i] += f32(0.5) * outputs[i, 0]
        total[:, :n_in] += backward(flat[e], n_in, width, 1, True, inputs, trace, slope, nothing, True)
    return values, total


@_part
def limit(states: FloatArray, low: FloatArray, high: FloatArray, inside: FloatArray) -> None:
    """Clip states to the range of what was seen, and note where that happened."""
    for i in range(states.shape[0]):
        for j in range(states.shape[1]):
            clipped = min(max(states[i, j], low[j]), high[j])
            inside[i, j] = f32(1.0) if clipped == states[i, j] else f32(0.0)
            states[i, j] = clipped


@_part
def survive_backward(
    ending: Any, states: FloatArray, trace: Any, by_alive: FloatArray, alive: FloatArray, chances: FloatArray
) -> FloatArray:
    """From derivatives by having come so far to those by the states that decide it; ``alive`` is what was come to."""
    flat, width, _ = ending
    n, dx = states.shape
    slope, nothing = np.empty((n, 1), f32), np.empty(0, f32)
    for i in range(n):
        slope[i, 0] = -by_alive[i] * alive[i] * (f32(1.0) - chances[i])
    return backward(flat, dx, width, 1, False, states, trace, slope, nothing, True)


@_part
def earn(
    discount: float, alive: FloatArray, gains: FloatArray, chances: FloatArray, weights: FloatArray, by_alive: FloatArray
) -> float:
    """What a step earns; sets its weights, and takes the derivative by having come so far one step back."""
    objective = f32(0.0)
    for i in range(len(gains)):
        weights[i] = f32(discount) * alive[i]
        objective += weights[i] * gains[i]
        by_alive[i] = f32(discount) * gains[i] + chances[i] * by_alive[i]
    return float(objective)


@_compiled
def window_gradient(
    actor: Any,
    model: Any,
    ending: Any,
    critic: Any,
    starts: FloatArray,
    state_residuals: FloatArray,
    reward_residuals: FloatArray,
    noise: FloatArray,
    temperature: float,
    gamma: float,
) -> tuple[FloatArray, float, float]:
    """The gradient of J by the policy's parameters, J and the entropy; starts ``[M, dx]``, noise ``[H + 1, M, du]``."""
    flat, width, log_low, log_high = actor
    (horizon, n, dx), du = state_residuals.shape, noise.shape[2]
    alpha, share = f32(temperature), f32(1.0 / n)
    states, alive = np.empty((horizon + 1, n, dx), f32), np.ones((horizon + 1, n), f32)
    chances, rewards = np.ones((horizon, n), f32), reward_residuals.copy()
    inputs = np.empty((horizon, n, dx + du), f32)
    inside, within = np.empty((horizon, n, dx + 1), f32), np.empty((horizon, n, dx), f32)
    states[0] = starts
    choices, model_traces, ending_traces = [], [], []
    objective, entropy = f32(0.0), f32(0.0)
    for t in range(horizon + 1):
        outputs, trace = forward(flat, dx, width, 2 * du, False, states[t])
        actions, log_probs, stds = sample(outputs, noise[t], log_low, log_high)
        choices.append((outputs, trace, actions, log_probs, stds))
        if t == horizon:
            break
        inputs[t, :, :dx] = states[t]
        inputs[t, :, dx:] = actions
        states[t + 1] = state_residuals[t]
        model_traces.append(transition(model, inputs[t], states[t + 1], rewards[t], inside[t]))
        limit(states[t + 1], model[6], model[7], within[t])
        chances[t], ending_trace = survive(ending, states[t + 1])
        ending_traces.append(ending_trace)
        for i in range(n):
            alive[t + 1, i] = alive[t, i] * chances[t, i]
    gradient, by_alive = np.zeros_like(flat), np.zeros(n, f32)
    weights = f32(gamma**horizon) * share * alive[horizon]
    values, by_input = close(critic, states[horizon], choices[horizon][2], weights)
    gains = values - alpha * choices[horizon][3]
    objective += earn(f32(gamma**horizon) * share, alive[horizon], gains, by_alive, weights, by_alive)
    for t in range(horizon, -1, -1):
        outputs, trace, actions, log_probs, stds = choices[t]
        if t < horizon:
            by_state = np.ascontiguousarray(by_input[:, :dx])
            if ending[2]:
                fate = ending_traces[t], by_alive, alive[t + 1], chances[t]
                by_state += survive_backward(ending, states[t + 1], *fate)
            by_state *= within[t]
            gains = rewards[t] - alpha * log_probs
            objective += earn(f32(gamma**t) * share, alive[t], gains, chances[t], weights, by_alive)
            by_input = transition_backward(model, inputs[t], model_traces[t], inside[t], by_state, weights)
        entropy -= log_probs.sum() * share / f32(horizon + 1)
        by_action = np.ascontiguousarray(by_input[:, dx:])
        by_output = sample_backward(outputs, noise[t], actions, stds, log_low, log_high, by_action, -alpha * weights)
        by_input[:, :dx] += backward(flat, dx, width, 2 * du, False, states[t], trace, by_output, gradient, True)
    return gradient, float(objective), float(entropy)
