"""Plain loops around matrix products for small networks, as numba compiles them: forward, backward and Adam in one go.

A network has two hidden layers of one width and its parameters in a row (see ``networks``); all arrays are of single
precision and contiguous. torch spends most of its time on such networks outside of arithmetic.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

FloatArray = np.ndarray
f32 = np.float32
Trace = tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]
"""What a forward pass leaves for the backward pass: of each hidden layer the input of the activation, its output, and one over
the standard deviation by which the layer was normalised"""

COMPILED = False
"""whether numba is there to compile"""
try:
    import numba

    COMPILED = not getattr(numba.config, "DISABLE_JIT", False)
except ImportError:  # pragma: no cover - numba is an optional extra
    pass

SIXTH = f32(1.0 / 6.0)
NORM_EPSILON = f32(1e-5)
TANH_EPSILON = f32(1e-6)
HALF_LOG_TWO_PI = f32(0.5 * math.log(2.0 * math.pi))
BETA_1, BETA_2, ADAM_EPSILON = f32(0.9), f32(0.999), f32(1e-8)


OPTIONS = {"cache": True, "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"}, "error_model": "numpy"}
"""Sums may be taken in any order, but what is not finite stays so."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile where numba is there."""
    return numba.njit(**OPTIONS)(function) if COMPILED else function  # type: ignore[call-overload]


def _part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into whatever calls it: a copy of its own adds up in another order where it comes from the cache."""
    return numba.njit(**OPTIONS, forceinline=True)(function) if COMPILED else function  # type: ignore[call-overload]


@_part
def split(flat: FloatArray, n_in: int, width: int, n_out: int) -> tuple[FloatArray, ...]:
    """Views of the parameters: weights and biases of the three layers."""
    a = n_in * width
    b = a + width
    c = b + width * width
    d = c + width
    e = d + width * n_out
    return (
        flat[:a].reshape(n_in, width),
        flat[a:b],
        flat[b:c].reshape(width, width),
        flat[c:d],
        flat[d:e].reshape(width, n_out),
        flat[e : e + n_out],
    )


@_part
def activate(z: FloatArray, bias: FloatArray, normalised: bool, inverse: FloatArray, out: FloatArray) -> None:
    """Add the bias, perhaps normalise, and take hardswish; ``z`` becomes the input of the latter."""
    n, width = z.shape
    for i in range(n):
        if normalised:
            mean, variance = f32(0.0), f32(0.0)
            for j in range(width):
                z[i, j] += bias[j]
                mean += z[i, j]
            mean /= f32(width)
            for j in range(width):
                variance += (z[i, j] - mean) * (z[i, j] - mean)
            inverse[i] = f32(1.0) / math.sqrt(variance / f32(width) + NORM_EPSILON)
            for j in range(width):
                z[i, j] = (z[i, j] - mean) * inverse[i]
        else:
            for j in range(width):
                z[i, j] += bias[j]
        for j in range(width):
            out[i, j] = z[i, j] * min(max(z[i, j] + f32(3.0), f32(0.0)), f32(6.0)) * SIXTH


@_part
def activate_backward(z: FloatArray, normalised: bool, inverse: FloatArray, slope: FloatArray) -> None:
    """From the derivative by the activation's output to that by the layer's sum, in place."""
    n, width = z.shape
    for i in range(n):
        for j in range(width):
            v = z[i, j]
            inner = (f32(2.0) * v + f32(3.0)) * SIXTH
            slope[i, j] *= f32(0.0) if v <= f32(-3.0) else (f32(1.0) if v >= f32(3.0) else inner)
        if normalised:
            mean, along = f32(0.0), f32(0.0)
            for j in range(width):
                mean += slope[i, j]
                along += slope[i, j] * z[i, j]
            mean /= f32(width)
            along /= f32(width)
            for j in range(width):
                slope[i, j] = (slope[i, j] - mean - z[i, j] * along) * inverse[i]


@_part
def forward(
    flat: FloatArray, n_in: int, width: int, n_out: int, normalised: bool, inputs: FloatArray
) -> tuple[FloatArray, Trace]:
    """Outputs ``[n, n_out]`` and what the backward pass needs."""
    w1, b1, w2, b2, w3, b3 = split(flat, n_in, width, n_out)
    n = inputs.shape[0]
    s1, s2 = np.empty(n, f32), np.empty(n, f32)
    z1 = np.dot(inputs, w1)
    h1 = np.empty_like(z1)
    activate(z1, b1, normalised, s1, h1)
    z2 = np.dot(h1, w2)
    h2 = np.empty_like(z2)
    activate(z2, b2, normalised, s2, h2)
    outputs = np.dot(h2, w3)
    for i in range(n):
        for j in range(n_out):
            outputs[i, j] += b3[j]
    return outputs, (z1, h1, s1, z2, h2, s2)


@_part
def add_rows(rows: FloatArray, total: FloatArray) -> None:
    """Add up the rows."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            total[j] += rows[i, j]


@_part
def backward(
    flat: FloatArray,
    n_in: int,
    width: int,
    n_out: int,
    normalised: bool,
    inputs: FloatArray,
    trace: Trace,
    slope: FloatArray,
    gradient: FloatArray,
    wants_inputs: bool,
) -> FloatArray:
    """Add the derivative by the parameters to ``gradient`` (none if empty); return that by the inputs if wanted."""
    w1, _, w2, _, w3, _ = split(flat, n_in, width, n_out)
    z1, h1, s1, z2, h2, s2 = trace
    d2 = np.dot(slope, w3.T)
    activate_backward(z2, normalised, s2, d2)
    d1 = np.dot(d2, w2.T)
    activate_backward(z1, normalised, s1, d1)
    if gradient.size > 0:
        g1, c1, g2, c2, g3, c3 = split(gradient, n_in, width, n_out)
        g3 += np.dot(h2.T, slope)
        add_rows(slope, c3)
        g2 += np.dot(h1.T, d2)
        add_rows(d2, c2)
        g1 += np.dot(inputs.T, d1)
        add_rows(d1, c1)
    if wants_inputs:
        return np.dot(d1, w1.T)
    return d1


@_part
def adam(flat: FloatArray, gradient: FloatArray, first: FloatArray, second: FloatArray, step: int, rate: float) -> None:
    """One step of Adam, its moments updated in place; ``step`` counts from 1."""
    rate_1 = f32(rate / (1.0 - 0.9**step))
    bias_2 = f32(1.0 / (1.0 - 0.999**step))
    for i in range(flat.size):
        g = gradient[i]
        first[i] = BETA_1 * first[i] + (f32(1.0) - BETA_1) * g
        second[i] = BETA_2 * second[i] + (f32(1.0) - BETA_2) * g * g
        flat[i] -= rate_1 * first[i] / (math.sqrt(second[i] * bias_2) + ADAM_EPSILON)


@_part
def exponential(x: FloatArray) -> FloatArray:
    """exp to seven digits; unlike ``math.exp`` in a loop that the compiler vectorises (Cephes' polynomial)."""
    flat = x.reshape(-1)
    powers, result = np.empty(flat.size, np.int32), np.empty(flat.size, f32)
    for i in range(flat.size):
        v = min(max(flat[i], f32(-87.0)), f32(87.0))
        k = np.floor(v * f32(1.4426950408889634) + f32(0.5))
        r = v - k * f32(0.693359375) + k * f32(2.12194440e-4)
        y = f32(1.9875691500e-4) * r + f32(1.3981999507e-3)
        y = y * r + f32(8.3334519073e-3)
        y = y * r + f32(4.1665795894e-2)
        y = y * r + f32(1.6666665459e-1)
        y = y * r + f32(5.0000001201e-1)
        result[i] = y * r * r + r + f32(1.0)
        powers[i] = (np.int32(k) + np.int32(127)) << np.int32(23)
    scales = powers.view(np.float32)
    for i in range(flat.size):
        result[i] *= scales[i]
    return result.reshape(x.shape)


@_part
def logarithm(x: FloatArray) -> FloatArray:
    """log of positive normal numbers to seven digits, likewise."""
    bits = x.reshape(-1).view(np.int32)
    mantissas, result = np.empty(bits.size, np.int32), np.empty(bits.size, f32)
    for i in range(bits.size):
        mantissas[i] = (bits[i] & np.int32(0x007FFFFF)) | np.int32(0x3F000000)
    halves = mantissas.view(np.float32)  # in [.5, 1)
    for i in range(bits.size):
        k, m = f32((bits[i] >> np.int32(23)) - np.int32(126)), halves[i]
        low = m < f32(0.707106781)
        k -= f32(1.0) if low else f32(0.0)
        r = m + m - f32(1.0) if low else m - f32(1.0)
        y = f32(7.0376836292e-2) * r - f32(1.1514610310e-1)
        y = y * r + f32(1.1676998740e-1)
        y = y * r - f32(1.2420140846e-1)
        y = y * r + f32(1.4249322787e-1)
        y = y * r - f32(1.6668057665e-1)
        y = y * r + f32(2.0000714765e-1)
        y = y * r - f32(2.4999993993e-1)
        y = y * r + f32(3.3333331174e-1)
        y = y * r * r * r - k * f32(2.12194440e-4) - f32(0.5) * r * r
        result[i] = r + y + k * f32(0.693359375)
    return result.reshape(x.shape)


@_part
def hyperbolic_tangent(x: FloatArray) -> FloatArray:
    """tanh, likewise."""
    growth = exponential(x + x)
    flat = growth.reshape(-1)
    for i in range(flat.size):
        flat[i] = f32(1.0) - f32(2.0) / (flat[i] + f32(1.0))
    return growth


@_part
def sample(outputs: FloatArray, noise: FloatArray, low: float, high: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Actions ``[n, du]``, log-probabilities ``[n]`` and standard deviations ``[n, du]`` (``actors``)."""
    n, du = noise.shape
    half = f32(0.5 * (high - low))
    log_stds = hyperbolic_tangent(outputs[:, du:].copy())
    for i in range(n):
        for j in range(du):
            log_stds[i, j] = f32(low) + half * (log_stds[i, j] + f32(1.0))
    stds = exponential(log_stds)
    before = np.empty((n, du), f32)
    for i in range(n):
        for j in range(du):
            before[i, j] = outputs[i, j] + stds[i, j] * noise[i, j]
    actions = hyperbolic_tangent(before)
    for i in range(n):
        for j in range(du):
            before[i, j] = f32(1.0) - actions[i, j] * actions[i, j] + TANH_EPSILON
    corrections, log_probs = logarithm(before), np.zeros(n, f32)
    for i in range(n):
        for j in range(du):
            density = f32(-0.5) * noise[i, j] * noise[i, j] - log_stds[i, j] - HALF_LOG_TWO_PI
            log_probs[i] += density - corrections[i, j]
    return actions, log_probs, stds


@_part
def sample_backward(
    outputs: FloatArray,
    noise: FloatArray,
    actions: FloatArray,
    stds: FloatArray,
    low: float,
    high: float,
    by_action: FloatArray,
    by_log_prob: FloatArray,
) -> FloatArray:
    """From derivatives by actions and log-probabilities to those by the network's outputs."""
    n, du = noise.shape
    half = f32(0.5 * (high - low))
    slope = np.empty_like(outputs)
    bounded = hyperbolic_tangent(outputs[:, du:].copy())
    for i in range(n):
        for j in range(du):
            u = actions[i, j]
            inner = f32(1.0) - u * u
            by_sum = inner * (by_action[i, j] + by_log_prob[i] * f32(2.0) * u / (inner + TANH_EPSILON))
            slope[i, j] = by_sum
            by_log_std = by_sum * stds[i, j] * noise[i, j] - by_log_prob[i]
            slope[i, du + j] = by_log_std * half * (f32(1.0) - bounded[i, j] * bounded[i, j])
    return slope


@_part
def huber_step(
    flat: FloatArray,
    first: FloatArray,
    second: FloatArray,
    step: int,
    rate: float,
    n_in: int,
    width: int,
    n_out: int,
    normalised: bool,
    inputs: FloatArray,
    targets: FloatArray,
) -> float:
    """One step of Adam on the mean Huber loss of a network."""
    n = inputs.shape[0]
    outputs, trace = forward(flat, n_in, width, n_out, normalised, inputs)
    share, loss = f32(1.0 / (n * n_out)), f32(0.0)
    for i in range(n):
        for j in range(n_out):
            error = outputs[i, j] - targets[i, j]
            size = abs(error)
            loss += f32(0.5) * error * error if size <= f32(1.0) else size - f32(0.5)
            outputs[i, j] = share * min(max(error, f32(-1.0)), f32(1.0))
    gradient = np.zeros_like(flat)
    backward(flat, n_in, width, n_out, normalised, inputs, trace, outputs, gradient, False)
    adam(flat, gradient, first, second, step, rate)
    return float(loss * share)


@_compiled
def fit_ensemble(
    flat: FloatArray,
    first: FloatArray,
    second: FloatArray,
    step: int,
    rate: float,
    width: int,
    inputs: FloatArray,
    targets: FloatArray,
    rows: FloatArray,
) -> float:
    """Steps of every member on minibatches of its own, ``rows [K, E, B]``; the mean loss."""
    n_steps, n_members, n_rows = rows.shape
    n_in, n_out = inputs.shape[1], targets.shape[1]
    batch, goal = np.empty((n_rows, n_in), f32), np.empty((n_rows, n_out), f32)
    total = 0.0
    for k in range(n_steps):
        for e in range(n_members):
            for i in range(n_rows):
                batch[i] = inputs[rows[k, e, i]]
                goal[i] = targets[rows[k, e, i]]
            total += huber_step(flat[e], first[e], second[e], step + k + 1, rate, n_in, width, n_out, False, batch, goal)
    return total / (n_steps * n_members)


@_compiled
def fit_classifier(
    flat: FloatArray,
    first: FloatArray,
    second: FloatArray,
    step: int,
    rate: float,
    width: int,
    inputs: FloatArray,
    labels: FloatArray,
    rows: FloatArray,
) -> None:
    """Steps on the cross entropy of a network with one output, ``rows [K, B]``."""
    n_steps, n_rows = rows.shape
    n_in = inputs.shape[1]
    batch = np.empty((n_rows, n_in), f32)
    for k in range(n_steps):
        for i in range(n_rows):
            batch[i] = inputs[rows[k, i]]
        outputs, trace = forward(flat, n_in, width, 1, False, batch)
        for i in range(n_rows):
            chance = f32(1.0) / (f32(1.0) + math.exp(-outputs[i, 0]))
            outputs[i, 0] = (chance - labels[rows[k, i]]) / f32(n_rows)
        gradient = np.zeros_like(flat)
        backward(flat, n_in, width, 1, False, batch, trace, outputs, gradient, False)
        adam(flat, gradient, first, second, step + k + 1, rate)


@_compiled
def update_critic(
    flat: FloatArray,
    slow: FloatArray,
    first: FloatArray,
    second: FloatArray,
    step: int,
    rate: float,
    width: int,
    tau: float,
    actor: FloatArray,
    actor_width: int,
    log_std_low: float,
    log_std_high: float,
    states: FloatArray,
    actions: FloatArray,
    rewards: FloatArray,
    next_states: FloatArray,
    survival: FloatArray,
    rows: FloatArray,
    noise: FloatArray,
    temperature: float,
    gamma: float,
    low: float,
    high: float,
) -> tuple[float, float]:
    """Updates of the twin Q-functions and their slow copies (``critics``), ``rows [K, B]``; mean loss and last target."""
    n_updates, n_rows = rows.shape
    dx, du = states.shape[1], actions.shape[1]
    n_in = dx + du
    here, there = np.empty((n_rows, n_in), f32), np.empty((n_rows, n_in), f32)
    following, goal = np.empty((n_rows, dx), f32), np.empty((n_rows, 1), f32)
    total, mean = 0.0, 0.0
    for k in range(n_updates):
        for i in range(n_rows):
            row = rows[k, i]
            here[i, :dx] = states[row]
            here[i, dx:] = actions[row]
            following[i] = next_states[row]
            there[i, :dx] = next_states[row]
        outputs, _ = forward(actor, dx, actor_width, 2 * du, False, following)
        next_actions, log_probs, _ = sample(outputs, noise[k], log_std_low, log_std_high)
        there[:, dx:] = next_actions
        one, _ = forward(slow[0], n_in, width, 1, True, there)
        two, _ = forward(slow[1], n_in, width, 1, True, there)
        mean = 0.0
        for i in range(n_rows):
            value = min(max(min(one[i, 0], two[i, 0]), f32(low)), f32(high)) - f32(temperature) * log_probs[i]
            goal[i, 0] = rewards[rows[k, i]] + f32(gamma) * survival[rows[k, i]] * value
            mean += goal[i, 0] / n_rows
        for e in range(2):
            total += huber_step(flat[e], first[e], second[e], step + k + 1, rate, n_in, width, 1, True, here, goal) / (
                2 * n_updates
            )
            for j in range(flat.shape[1]):
                slow[e, j] += f32(tau) * (flat[e, j] - slow[e, j])
    return total, mean
