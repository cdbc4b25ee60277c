"""The hot loop of iLQR: one backward pass whose steps stay within limits.

Problem: at each time step, from the last to the first, with z = [x; u] in changes from a trajectory, V, v of the next state,

    Q = C + F' V F + sum_i v_i d2f_i/dz2,   q = c + F' v         (the last term of Q with second-order dynamics only),
    k = argmin 1/2 k' H k + q_u' k  within  low <= k <= high,    H = Quu + shift I,
    K = -H_ff^-1 Q_fx on the actions f that are free, 0 on those held by a limit,
    V <- Qxx + K' Quu K + K' Qux + Qxu K,   v <- q_x + K' Quu k + K' q_u + Qxu k.

The quadratic programme is solved by projected Newton steps (Tassa, Mansard and Todorov 2014, Control-limited differential
dynamic programming). Where a whole step, once it is clipped, does not bring enough, one goes straight on to the first limit
that is met, which lowers the cost in any case: clipped steps that are ever shorter creep towards that limit and are never
held by it. Along the step alpha k the model predicts a change of cost of alpha d_1 + alpha^2 d_2, d_1 = sum q_u' k,
d_2 = sum 1/2 k' Quu k.

Shapes: F ``[T, dx, dz]``, C ``[T, dz, dz]``, c ``[T, dz]``, V ``[dx, dx]``, v ``[dx]`` of the last state, second
``[T, dx, dz, dz]`` or ``[0, dx, dz, dz]`` for none, low and high ``[T, du]``, infinite where there is no limit; out come K
``[T, du, dx]``, k ``[T, du]``, d ``[2]``, size, the largest diagonal entry of Quu that was met, and failed, the time step at
which H was not positive definite on the free actions or -1.

The numpy version is the reference and always there; the plain loops are used where numba is installed to compile them.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from sb3_dpi.trajopt import kernels
from sb3_dpi.trajopt.compilation import compiles
from sb3_dpi.trajopt.kernels import inner_loop, loop
from sb3_dpi.trajopt.lqr import symmetrize
from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray

BoxResult = tuple[FloatArray, FloatArray, FloatArray, float, int]

MOST_NEWTON_STEPS = 50
"""Of one quadratic programme: each changes the set of free actions, of which few are visited."""
SUFFICIENT = 0.1
"""Share of the predicted decrease that a projected step must bring."""


def box_minimum_numpy(H: FloatArray, g: FloatArray, low: FloatArray, high: FloatArray) -> tuple[FloatArray, BoolArray] | None:
    """Minimise 1/2 k'Hk + g'k within limits.

    :param H: ``[du, du]``, symmetric
    :param g: ``[du]``
    :param low: ``[du]``
    :param high: ``[du]``
    :return: the minimiser ``[du]`` and which of its entries are free; None where H is not positive definite on these
    """
    k = np.clip(np.zeros(len(g)), low, high)
    settled = np.zeros(len(g), dtype=bool)
    free = settled
    for _ in range(MOST_NEWTON_STEPS):
        slope = g + H @ k
        free = ~(((k <= low) & (slope > 0)) | ((k >= high) & (slope < 0)))
        if not free.any():
            return k, free
        try:
            factor = cho_factor(H[np.ix_(free, free)])
        except (np.linalg.LinAlgError, ValueError):
            return None
        if np.array_equal(free, settled):
            return k, free
        step = np.zeros(len(g))
        step[free] = -cho_solve(factor, slope[free])
        moved = np.clip(k + step, low, high)
        # predicted by what is left of the step in the box
        predicted, here = slope @ (moved - k), k @ (0.5 * H @ k + g)
        if not (predicted < 0.0 and moved @ (0.5 * H @ moved + g) - here <= SUFFICIENT * predicted):
            moved = _to_first_limit(H, low, high, k, slope, free)
            if not moved @ (0.5 * H @ moved + g) < here:
                return k, free
        settled = free if np.array_equal(moved, k + step) else np.zeros(len(g), dtype=bool)
        k = moved
    return k, free


def _to_first_limit(
    H: FloatArray, low: FloatArray, high: FloatArray, k: FloatArray, slope: FloatArray, free: BoolArray
) -> FloatArray:
    """Where the way to the minimum of the free entries meets the first limit; entries that it would push out stay."""
    moving = free.copy()
    while True:
        step = np.zeros(len(k))
        step[moving] = -np.linalg.solve(H[np.ix_(moving, moving)], slope[moving])
        limit = np.where(step < 0.0, low, high)
        stopped = moving & (k == limit)  # never all: the step is one of descent, and alone each would go inwards
        if not stopped.any():
            break
        moving &= ~stopped
    room = np.full(len(k), np.inf)
    np.divide(limit - k, step, out=room, where=step != 0.0)
    share = min(1.0, float(room.min()))
    return np.where(room <= share, limit, k + share * step)


def box_pass_numpy(
    F: FloatArray,
    C: FloatArray,
    c: FloatArray,
    V: FloatArray,
    v: FloatArray,
    second: FloatArray,
    low: FloatArray,
    high: FloatArray,
    shift: float,
) -> BoxResult:
    """Backward pass in numpy.

    :param F: dynamics matrix, ``[T, dx, dz]``
    :param C: cost matrix, ``[T, dz, dz]``
    :param c: cost vector, ``[T, dz]``
    :param V: matrix of the last state's cost, ``[dx, dx]``
    :param v: its vector, ``[dx]``
    :param second: second derivatives of the dynamics, ``[T, dx, dz, dz]``; of no time steps for none
    :param low: least k, ``[T, du]``
    :param high: greatest k, ``[T, du]``
    :param shift: added to the diagonal of Quu
    :return: K, k, d, size, failed (see the module's head); where ``failed >= 0`` K, k and d are undefined
    """
    T, dx, dz = F.shape
    du = dz - dx
    K, k, d, size = np.zeros((T, du, dx)), np.zeros((T, du)), np.zeros(2), 0.0
    for t in reversed(range(T)):
        Q, q = C[t] + F[t].T @ V @ F[t], c[t] + F[t].T @ v
        if len(second):
            Q = Q + np.tensordot(v, second[t], 1)
        Quu, Qux, qu = symmetrize(Q[dx:, dx:]), Q[dx:, :dx], q[dx:]
        size = max(size, float(np.abs(np.diagonal(Quu)).max()))
        H = Quu + shift * np.eye(du)
        found = box_minimum_numpy(H, qu, low[t], high[t])
        if found is None:
            return K, k, d, size, t
        k[t], free = found
        K[t, free] = -np.linalg.solve(H[np.ix_(free, free)], Qux[free])
        d += qu @ k[t], 0.5 * k[t] @ Quu @ k[t]
        V = symmetrize(Q[:dx, :dx] + K[t].T @ Quu @ K[t] + K[t].T @ Qux + Qux.T @ K[t])
        v = q[:dx] + K[t].T @ (Quu @ k[t] + qu) + Qux.T @ k[t]
    return K, k, d, size, -1


@inner_loop
def _copy(vector: FloatArray, out: FloatArray) -> None:
    for i in range(len(vector)):  # a slice that is assigned would take numba seconds more
        out[i] = vector[i]


@inner_loop
def _factor(H: FloatArray, index: IntArray, n: int, lower: FloatArray) -> bool:
    """Write the Cholesky factor of H on the first n indices; False where it is not positive definite."""
    for i in range(n):
        for j in range(i + 1):
            total = H[index[i], index[j]]
            for r in range(j):
                total -= lower[i, r] * lower[j, r]
            if i == j:
                if not (total > 0.0 and np.isfinite(total)):
                    return False
                lower[i, i] = np.sqrt(total)
            else:
                lower[i, j] = total / lower[j, j]
    return True


@inner_loop
def _solve(lower: FloatArray, n: int, vector: FloatArray) -> None:
    """Overwrite a vector with what the factored matrix makes it of."""
    for i in range(n):
        for r in range(i):
            vector[i] -= lower[i, r] * vector[r]
        vector[i] /= lower[i, i]
    for i in range(n - 1, -1, -1):
        for r in range(i + 1, n):
            vector[i] -= lower[r, i] * vector[r]
        vector[i] /= lower[i, i]


@inner_loop
def _objective(H: FloatArray, g: FloatArray, k: FloatArray) -> float:
    total = 0.0
    for i in range(len(k)):
        row = g[i]
        for j in range(len(k)):
            row += 0.5 * H[i, j] * k[j]
        total += k[i] * row
    return total


@inner_loop
def _free_actions(
    H: FloatArray, g: FloatArray, low: FloatArray, high: FloatArray, k: FloatArray, slope: FloatArray, index: IntArray
) -> int:
    """Write the slope and the indices of free actions, and return how many they are."""
    n = 0
    for i in range(len(k)):
        slope[i] = g[i]
        for j in range(len(k)):
            slope[i] += H[i, j] * k[j]
        if not ((k[i] <= low[i] and slope[i] > 0.0) or (k[i] >= high[i] and slope[i] < 0.0)):
            index[n] = i
            n += 1
    return n


@loop
def _to_first_limit_loops(
    H: FloatArray,
    low: FloatArray,
    high: FloatArray,
    k: FloatArray,
    slope: FloatArray,
    index: IntArray,
    n: int,
    moved: FloatArray,
) -> None:
    """The same as ``_to_first_limit``: writes where it leads."""
    du = len(k)
    moving, lower, step = index.copy(), np.zeros((du, du)), np.zeros(du)
    was = n + 1
    while n < was:
        _factor(H, moving, n, lower)
        for i in range(n):
            step[i] = -slope[moving[i]]
        _solve(lower, n, step)
        was, left = n, 0
        for i in range(was):
            r = moving[i]
            if k[r] != (low[r] if step[i] < 0.0 else high[r]):
                moving[left], step[left] = r, step[i]
                left += 1
        n = left
    share = 1.0
    for i in range(n):
        if step[i] != 0.0:
            r = moving[i]
            share = min(share, ((low[r] if step[i] < 0.0 else high[r]) - k[r]) / step[i])
    _copy(k, moved)
    for i in range(n):
        if step[i] != 0.0:
            r = moving[i]
            limit = low[r] if step[i] < 0.0 else high[r]
            moved[r] = limit if (limit - k[r]) / step[i] <= share else k[r] + share * step[i]


@loop
def box_minimum_loops(
    H: FloatArray, g: FloatArray, low: FloatArray, high: FloatArray, k: FloatArray, index: IntArray, lower: FloatArray
) -> int:
    """The same as ``box_minimum_numpy``: writes k, free indices and their factor; returns their number or -1."""
    du = len(g)
    slope, step, moved = np.zeros(du), np.zeros(du), np.zeros(du)
    was = np.zeros(du, dtype=np.int64)
    n_was = -1
    for i in range(du):
        k[i] = min(max(0.0, low[i]), high[i])
    n = 0
    for _ in range(MOST_NEWTON_STEPS):
        n = int(_free_actions(H, g, low, high, k, slope, index))
        same = n == n_was
        for i in range(n):
            same = same and index[i] == was[i]
        if n == 0 or same:
            return n
        if not _factor(H, index, n, lower):
            return -1
        for i in range(n):
            step[i] = -slope[index[i]]
        _solve(lower, n, step)
        here, predicted, whole = _objective(H, g, k), 0.0, True
        _copy(k, moved)
        for i in range(n):
            r = index[i]
            moved[r] = min(max(k[r] + step[i], low[r]), high[r])
            whole = whole and moved[r] == k[r] + step[i]
            predicted += slope[r] * (moved[r] - k[r])
        if not (predicted < 0.0 and _objective(H, g, moved) - here <= SUFFICIENT * predicted):
            _to_first_limit_loops(H, low, high, k, slope, index, n, moved)
            if not _objective(H, g, moved) < here:
                return n
            whole = False
        _copy(moved, k)
        n_was = n if whole else -1
        for i in range(n):
            was[i] = index[i]
    return n


@loop
def box_pass_loops(
    F: FloatArray,
    C: FloatArray,
    c: FloatArray,
    V: FloatArray,
    v: FloatArray,
    second: FloatArray,
    low: FloatArray,
    high: FloatArray,
    shift: float,
) -> BoxResult:
    """The same as ``box_pass_numpy`` in plain loops, the form that numba compiles best at these sizes."""
    T, dx, dz = F.shape
    du = dz - dx
    K, k, d = np.zeros((T, du, dx)), np.zeros((T, du)), np.zeros(2)
    V, v, size = V.copy(), v.copy(), 0.0
    Q, q, W = np.zeros((dz, dz)), np.zeros(dz), np.zeros((dx, dz))
    H, lower, index, column = np.zeros((du, du)), np.zeros((du, du)), np.zeros(du, dtype=np.int64), np.zeros(du)
    for t in range(T - 1, -1, -1):
        for i in range(dz):
            _copy(C[t, i], Q[i])
        _copy(c[t], q)
        _add_next_value(F[t], V, v, W, Q, q)
        if len(second):
            _add_curvature(second[t], v, Q)
        for i in range(du):
            for j in range(du):
                H[i, j] = 0.5 * (Q[dx + i, dx + j] + Q[dx + j, dx + i])
            size = max(size, abs(H[i, i]))
            H[i, i] += shift
        n = box_minimum_loops(H, q[dx:], low[t], high[t], k[t], index, lower)
        if n < 0:
            return K, k, d, size, t
        for j in range(dx):
            for i in range(n):
                column[i] = -Q[dx + index[i], j]
            _solve(lower, n, column)
            for i in range(n):
                K[t, index[i], j] = column[i]
        for i in range(du):
            d[0] += q[dx + i] * k[t, i]
            d[1] -= 0.5 * shift * k[t, i] * k[t, i]
            for j in range(du):
                d[1] += 0.5 * k[t, i] * H[i, j] * k[t, j]
        _value(Q, q, H, K[t], k[t], shift, V, v)
    return K, k, d, size, -1


@inner_loop
def _add_next_value(F: FloatArray, V: FloatArray, v: FloatArray, W: FloatArray, Q: FloatArray, q: FloatArray) -> None:
    kernels.multiply(V, F, W)  # by its module, where the compiled one takes its place
    for row in range(F.shape[0]):
        for i in range(F.shape[1]):
            weight = F[row, i]
            q[i] += weight * v[row]
            for j in range(F.shape[1]):
                Q[i, j] += weight * W[row, j]


@inner_loop
def _add_curvature(second: FloatArray, v: FloatArray, Q: FloatArray) -> None:
    for row in range(len(v)):
        for i in range(len(Q)):
            for j in range(len(Q)):
                Q[i, j] += v[row] * second[row, i, j]


@inner_loop
def _value(
    Q: FloatArray, q: FloatArray, H: FloatArray, K: FloatArray, k: FloatArray, shift: float, V: FloatArray, v: FloatArray
) -> None:
    """Overwrite V and v with the value one step earlier."""
    du, dx = K.shape
    for i in range(dx):
        v[i] = q[i]
        for j in range(dx):
            V[i, j] = Q[i, j]
    for r in range(du):
        # what is left of the slope once k is taken: -shift k where the action is free, and K is zero where it is not
        rest = q[dx + r] - shift * k[r]
        for j in range(du):
            rest += H[r, j] * k[j]
        for i in range(dx):
            gain, mixed = K[r, i], Q[i, dx + r]
            v[i] += gain * rest + mixed * k[r]
            weight = mixed - shift * gain
            for j in range(dx):
                V[i, j] += weight * K[r, j]
    for i in range(dx):
        for j in range(i):
            V[i, j] = V[j, i] = 0.5 * (V[i, j] + V[j, i])


def box_pass(
    F: FloatArray,
    C: FloatArray,
    c: FloatArray,
    V: FloatArray,
    v: FloatArray,
    second: FloatArray,
    low: FloatArray,
    high: FloatArray,
    shift: float,
) -> BoxResult:
    """The faster of the two, with the same arguments."""
    return (box_pass_loops if compiles() else box_pass_numpy)(F, C, c, V, v, second, low, high, shift)
