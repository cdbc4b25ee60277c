"""The hot loop of the KL-constrained LQR: one backward and one forward pass at a given dual variable.

Problem, in coordinates that whiten the reference controller (its actions are w ~ N(0, I), see ``kl_lqr``): minimise
sum_t gamma^t (E[l_t(x, w)] + eta_t KL(p(w_t|x_t) || N(0, I))). With Q_t, q_t as in ``lqr``,

    K_t = -(Qww + eta_t I)^-1 Qwx,   k_t = -(Qww + eta_t I)^-1 qw,   S_t = eta_t (Qww + eta_t I)^-1,
    KL_t = 1/2 (tr S_t - du - log det S_t + tr(K_t Sigma_t K_t') + |K_t mu_t + k_t|^2).

Shapes: F ``[M, T, dx, dz]``, f ``[M, T, dx]``, noise ``[M, T, dx, dx]``, C ``[M, T, dz, dz]``, c ``[M, T, dz]``,
mean0 ``[M, dx]``, cov0 ``[M, dx, dx]``, eta ``[M, T]``; out come K ``[M, T, du, dx]``, k ``[M, T, du]``,
S ``[M, T, du, du]``, kl ``[M, T]`` and failed ``[M]``, the time step at which Qww + eta I was not positive definite or -1.

The numpy version is the reference and always there; the plain loops are used where numba is installed to compile them.
"""

import numpy as np

from sb3_dpi.trajopt.compilation import Loops, compiles
from sb3_dpi.trajopt.lqr import action_value, matvec, symmetrize
from sb3_dpi.trajopt.types import FloatArray, IntArray

PassResult = tuple[FloatArray, FloatArray, FloatArray, FloatArray, IntArray]

# A product and a sum may become one instruction
loop = Loops("the planner's loops", 12, error_model="numpy", fastmath={"contract"})
inner_loop = loop.inner


def pass_numpy(
    F: FloatArray,
    f: FloatArray,
    noise: FloatArray,
    C: FloatArray,
    c: FloatArray,
    mean0: FloatArray,
    cov0: FloatArray,
    eta: FloatArray,
    discount: float,
) -> PassResult:
    """Backward and forward pass at a given dual variable, batched over conditions in numpy.

    :param F: dynamics matrix, ``[M, T, dx, dz]``
    :param f: dynamics offset, ``[M, T, dx]``
    :param noise: dynamics covariance, ``[M, T, dx, dx]``
    :param C: cost matrix, ``[M, T, dz, dz]``
    :param c: cost vector, ``[M, T, dz]``
    :param mean0: mean of the first state, ``[M, dx]``
    :param cov0: covariance of the first state, ``[M, dx, dx]``
    :param eta: dual variable, ``[M, T]``, positive
    :param discount: gamma
    :return: K, k, S, kl, failed (see the module's head); where ``failed >= 0`` the other outputs are undefined
    """
    M, T, dx, dz = F.shape
    du = dz - dx
    K, k, S = np.zeros((M, T, du, dx)), np.zeros((M, T, du)), np.zeros((M, T, du, du))
    log_det = np.zeros((M, T))
    failed = np.full(M, -1)
    V, v = np.zeros((M, dx, dx)), np.zeros((M, dx))
    identity = np.eye(du)
    with np.errstate(all="ignore"):
        for t in reversed(range(T)):
            Q, q = action_value(C[:, t], c[:, t], F[:, t], f[:, t], V, v, discount)
            Qww = Q[:, dx:, dx:] + eta[:, t, None, None] * identity
            eigenvalues, basis = _safe_eigh(Qww)
            bad = ~(eigenvalues[:, 0] > 0) & (failed < 0)
            failed[bad] = t
            eigenvalues = np.where(eigenvalues > 0, eigenvalues, 1.0)
            inverse = (basis / eigenvalues[:, None, :]) @ np.swapaxes(basis, -1, -2)
            K[:, t] = -inverse @ Q[:, dx:, :dx]
            k[:, t] = -matvec(inverse, q[:, dx:])
            S[:, t] = eta[:, t, None, None] * inverse
            log_det[:, t] = np.sum(np.log(eta[:, t, None] / eigenvalues), -1)
            V = symmetrize(Q[:, :dx, :dx] + Q[:, :dx, dx:] @ K[:, t])
            v = q[:, :dx] + matvec(Q[:, :dx, dx:], k[:, t])
        kl = _forward_kl_numpy(F, f, noise, mean0, cov0, K, k, S, log_det)
    return K, k, S, kl, failed


def _safe_eigh(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    # a condition that has overflowed must not take the others down: its eigenvalues are reported as NaN
    finite = np.all(np.isfinite(matrix), (-1, -2))
    eigenvalues, basis = np.linalg.eigh(np.where(finite[:, None, None], matrix, np.eye(matrix.shape[-1])))
    return np.where(finite[:, None], eigenvalues, np.nan), basis


def _forward_kl_numpy(
    F: FloatArray,
    f: FloatArray,
    noise: FloatArray,
    mean0: FloatArray,
    cov0: FloatArray,
    K: FloatArray,
    k: FloatArray,
    S: FloatArray,
    log_det: FloatArray,
) -> FloatArray:
    M, T, dx, _ = F.shape
    du = k.shape[-1]
    A = F[..., :dx] + F[..., dx:] @ K
    a = f + matvec(F[..., dx:], k)
    W = F[..., dx:] @ S @ np.swapaxes(F[..., dx:], -1, -2) + noise
    mu, sigma = np.empty((M, T, dx)), np.empty((M, T, dx, dx))
    mu[:, 0], sigma[:, 0] = mean0, cov0
    for t in range(T - 1):
        mu[:, t + 1] = matvec(A[:, t], mu[:, t]) + a[:, t]
        sigma[:, t + 1] = symmetrize(A[:, t] @ sigma[:, t] @ np.swapaxes(A[:, t], -1, -2) + W[:, t])
    mean_shift = np.sum((matvec(K, mu) + k) ** 2, -1)
    spread = np.sum((K @ sigma) * K, (-1, -2))
    kl: FloatArray = 0.5 * (np.trace(S, axis1=-2, axis2=-1) - du - log_det + spread + mean_shift)
    return kl


@inner_loop
def _one_row(left: FloatArray, i: int, right: FloatArray, out: FloatArray, n: int) -> None:
    for j in range(n):
        out[i, j] = 0.0
    for r in range(left.shape[1]):
        weight = left[i, r]
        for j in range(n):
            out[i, j] += weight * right[r, j]


@inner_loop
def _two_rows(left: FloatArray, i: int, right: FloatArray, out: FloatArray, n: int) -> None:
    """Two rows by four at a time: what is loaded serves both, and a result is stored once for four products."""
    for j in range(n):
        out[i, j] = 0.0
        out[i + 1, j] = 0.0
    whole = left.shape[1] - left.shape[1] % 4
    for r in range(0, whole, 4):
        a, b, c, d = left[i, r], left[i, r + 1], left[i, r + 2], left[i, r + 3]
        e, f, g, h = left[i + 1, r], left[i + 1, r + 1], left[i + 1, r + 2], left[i + 1, r + 3]
        for j in range(n):
            w, x, y, z = right[r, j], right[r + 1, j], right[r + 2, j], right[r + 3, j]
            out[i, j] += a * w + b * x + c * y + d * z
            out[i + 1, j] += e * w + f * x + g * y + h * z
    for r in range(whole, left.shape[1]):
        a, e = left[i, r], left[i + 1, r]
        for j in range(n):
            out[i, j] += a * right[r, j]
            out[i + 1, j] += e * right[r, j]


@loop
def multiply(left: FloatArray, right: FloatArray, out: FloatArray) -> None:
    """Write a product of matrices."""
    even = left.shape[0] - left.shape[0] % 2
    for i in range(0, even, 2):
        _two_rows(left, i, right, out, right.shape[1])
    for i in range(even, left.shape[0]):
        _one_row(left, i, right, out, right.shape[1])


@loop
def multiply_symmetric(left: FloatArray, right: FloatArray, out: FloatArray) -> None:
    """Write a product that is known to be symmetric: half of it is computed."""
    even = left.shape[0] - left.shape[0] % 2
    for i in range(0, even, 2):
        _two_rows(left, i, right, out, i + 2)
    for i in range(even, left.shape[0]):
        _one_row(left, i, right, out, i + 1)
    for i in range(left.shape[0]):
        for j in range(i):
            out[j, i] = out[i, j]


@inner_loop
def _transpose(matrix: FloatArray, out: FloatArray) -> None:
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            out[j, i] = matrix[i, j]


@inner_loop
def _invert_shifted(Q: FloatArray, dx: int, eta: float, inverse: FloatArray, kl: FloatArray) -> bool:
    """Write (Qww + eta I)^-1 and (tr S - du - log det S) / 2; False where the matrix is not positive definite."""
    du = Q.shape[0] - dx
    lower, root = np.zeros((du, du)), np.zeros((du, du))
    log_det = 0.0
    for i in range(du):
        for j in range(i + 1):
            total = 0.5 * (Q[dx + i, dx + j] + Q[dx + j, dx + i])
            if i == j:
                total += eta
            for r in range(j):
                total -= lower[i, r] * lower[j, r]
            if i == j:
                if not (total > 0.0 and np.isfinite(total)):
                    return False
                lower[i, i] = np.sqrt(total)
                log_det += np.log(eta / total)
            else:
                lower[i, j] = total / lower[j, j]
    for j in range(du):
        for i in range(j, du):
            total = 1.0 if i == j else 0.0
            for r in range(j, i):
                total -= lower[i, r] * root[r, j]
            root[i, j] = total / lower[i, i]
    trace = 0.0
    for i in range(du):
        for j in range(du):
            total = 0.0
            for r in range(max(i, j), du):
                total += root[r, i] * root[r, j]
            inverse[i, j] = total
        trace += eta * inverse[i, i]
    kl[0] = 0.5 * (trace - du - log_det)
    return True


@inner_loop
def _gains(
    Q: FloatArray,
    q: FloatArray,
    dx: int,
    inverse: FloatArray,
    K: FloatArray,
    k: FloatArray,
    V: FloatArray,
    v: FloatArray,
) -> None:
    """Write K and k, and overwrite V and v with the value one step earlier."""
    du = inverse.shape[0]
    for i in range(du):
        k[i] = 0.0
        for j in range(dx):
            K[i, j] = 0.0
        for r in range(du):
            k[i] -= inverse[i, r] * q[dx + r]
            for j in range(dx):
                K[i, j] -= inverse[i, r] * Q[dx + r, j]
    multiply_symmetric(Q[:dx, dx:], K, V)
    for i in range(dx):
        v[i] = q[i]
        for r in range(du):
            v[i] += Q[i, dx + r] * k[r]
        for j in range(dx):
            V[i, j] += Q[i, j]


@inner_loop
def _backward_loops(
    F: FloatArray,
    f: FloatArray,
    C: FloatArray,
    c: FloatArray,
    eta: FloatArray,
    discount: float,
    K: FloatArray,
    k: FloatArray,
    S: FloatArray,
    kl: FloatArray,
) -> int:
    """Fill K, k, S of one condition, and kl with its part that needs no state: (tr S - du - log det S) / 2."""
    T, dx, dz = F.shape
    du = dz - dx
    V, v = np.zeros((dx, dx)), np.zeros(dx)
    Q, q = np.zeros((dz, dz)), np.zeros(dz)
    W, h, Ft = np.zeros((dx, dz)), np.zeros(dx), np.zeros((dz, dx))
    for t in range(T - 1, -1, -1):
        for i in range(dx):  # slices that are assigned would take numba seconds more
            h[i] = v[i]
        for i in range(dz):
            q[i] = c[t, i]
        for i in range(dx):
            for j in range(dx):
                h[j] += V[i, j] * f[t, i]
        for row in range(dx):
            weight = discount * h[row]
            for i in range(dz):
                q[i] += weight * F[t, row, i]
        multiply(V, F[t], W)
        _transpose(F[t], Ft)
        multiply_symmetric(Ft, W, Q)
        for i in range(dz):
            for j in range(dz):
                Q[i, j] = discount * Q[i, j] + C[t, i, j]
        if not _invert_shifted(Q, dx, eta[t], S[t], kl[t : t + 1]):
            return t
        _gains(Q, q, dx, S[t], K[t], k[t], V, v)
        for i in range(du):
            for j in range(du):
                S[t, i, j] *= eta[t]
    return -1


@inner_loop
def _forward_loops(
    F: FloatArray,
    f: FloatArray,
    noise: FloatArray,
    mean0: FloatArray,
    cov0: FloatArray,
    K: FloatArray,
    k: FloatArray,
    S: FloatArray,
    kl: FloatArray,
) -> None:
    """Add to kl the part that depends on the state: (tr(K Sigma K') + |K mu + k|^2) / 2."""
    T, dx, dz = F.shape
    du = dz - dx
    mu, sigma = mean0.copy(), cov0.copy()
    w, next_mu = np.zeros(du), np.zeros(dx)
    A, At, G = np.zeros((dx, dx)), np.zeros((dx, dx)), np.zeros((dx, dx))
    B, Bt, H = np.zeros((dx, du)), np.zeros((du, dx)), np.zeros((dx, du))
    R = np.zeros((du, dx))
    spread = np.zeros((dx, dx))
    for t in range(T):
        multiply(K[t], sigma, R)
        total = 0.0
        for i in range(du):
            w[i] = k[t, i]
            for j in range(dx):
                w[i] += K[t, i, j] * mu[j]
                total += R[i, j] * K[t, i, j]
            total += w[i] * w[i]
        kl[t] += 0.5 * total
        if t == T - 1:
            return
        for i in range(dx):
            next_mu[i] = f[t, i]
            for j in range(dx):
                A[i, j] = F[t, i, j]
                next_mu[i] += F[t, i, j] * mu[j]
            for r in range(du):
                B[i, r] = Bt[r, i] = F[t, i, dx + r]
                next_mu[i] += F[t, i, dx + r] * w[r]
                for j in range(dx):
                    A[i, j] += F[t, i, dx + r] * K[t, r, j]
        for i in range(dx):
            mu[i] = next_mu[i]
        _transpose(A, At)
        multiply(A, sigma, G)
        multiply_symmetric(G, At, sigma)
        multiply(B, S[t], H)
        multiply_symmetric(H, Bt, spread)
        for i in range(dx):
            for j in range(dx):
                sigma[i, j] += spread[i, j] + noise[t, i, j]


@loop
def _loops(
    F: FloatArray,
    f: FloatArray,
    noise: FloatArray,
    C: FloatArray,
    c: FloatArray,
    mean0: FloatArray,
    cov0: FloatArray,
    eta: FloatArray,
    discount: float,
    K: FloatArray,
    k: FloatArray,
    S: FloatArray,
    kl: FloatArray,
    failed: IntArray,
) -> None:
    """Fill the results of all conditions; numba takes seconds to compile what makes their arrays."""
    for m in range(len(failed)):
        failed[m] = _backward_loops(F[m], f[m], C[m], c[m], eta[m], discount, K[m], k[m], S[m], kl[m])
        if failed[m] < 0:
            _forward_loops(F[m], f[m], noise[m], mean0[m], cov0[m], K[m], k[m], S[m], kl[m])


def pass_loops(
    F: FloatArray,
    f: FloatArray,
    noise: FloatArray,
    C: FloatArray,
    c: FloatArray,
    mean0: FloatArray,
    cov0: FloatArray,
    eta: FloatArray,
    discount: float,
) -> PassResult:
    """The same as ``pass_numpy`` in plain loops, the form that numba compiles best at these sizes."""
    M, T, dx, dz = F.shape
    du = dz - dx
    K, k, S = np.zeros((M, T, du, dx)), np.zeros((M, T, du)), np.zeros((M, T, du, du))
    kl, failed = np.zeros((M, T)), np.full(M, -1)
    _loops(F, f, noise, C, c, mean0, cov0, eta, discount, K, k, S, kl, failed)
    return K, k, S, kl, failed


def lqr_pass(
    F: FloatArray,
    f: FloatArray,
    noise: FloatArray,
    C: FloatArray,
    c: FloatArray,
    mean0: FloatArray,
    cov0: FloatArray,
    eta: FloatArray,
    discount: float,
) -> PassResult:
    """The faster of the two, with the same arguments."""
    faster = pass_loops if compiles() else pass_numpy
    return faster(F, f, noise, C, c, mean0, cov0, eta, discount)
