"""Dynamics and cost seen from a controller's own noise.

A controller acts by u = K x + k + L w with w ~ N(0, I). Dynamics F [x; u] and cost 0.5 z' C z + c' z, z = [x; u], become those
of [x; w]: with z = G [x; w] + g they are F G, the offset F g, G' C G and G' (C g + c). Batched over M conditions and T steps.
"""

import numpy as np

from sb3_dpi.trajopt import kernels
from sb3_dpi.trajopt.compilation import compiles
from sb3_dpi.trajopt.kernels import inner_loop, loop
from sb3_dpi.trajopt.lqr import matvec, symmetrize
from sb3_dpi.trajopt.types import FloatArray

WhitenResult = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


def whiten_numpy(F: FloatArray, C: FloatArray, c: FloatArray, K: FloatArray, k: FloatArray, lower: FloatArray) -> WhitenResult:
    """Dynamics and cost in actions w, u = K x + k + lower w, in numpy.

    :param F: dynamics matrix, ``[M, T, dx, dz]``
    :param C: cost matrix, ``[M, T, dz, dz]``
    :param c: cost vector, ``[M, T, dz]``
    :param K: ``[M, T, du, dx]``
    :param k: ``[M, T, du]``
    :param lower: ``[M, T, du, du]``
    :return: F G, the offset F g, G' C G and G' (C g + c) with z = G [x; w] + g
    """
    dx, dz = F.shape[-2:]
    G, g = np.zeros((*K.shape[:-2], dz, dz)), np.zeros((*K.shape[:-2], dz))
    G[..., :dx, :dx] = np.eye(dx)
    G[..., dx:, :dx], G[..., dx:, dx:], g[..., dx:] = K, lower, k
    Gt = np.swapaxes(G, -1, -2)
    return F @ G, matvec(F, g), symmetrize(Gt @ C @ G), matvec(Gt, matvec(C, g) + c)


@inner_loop
def _whiten_step(
    F: FloatArray,
    C: FloatArray,
    K: FloatArray,
    lower: FloatArray,
    rows: FloatArray,
    columns: FloatArray,
    even: FloatArray,
    W: FloatArray,
    new_F: FloatArray,
    new_C: FloatArray,
) -> None:
    """Write [K lower], its transpose, F G and G' C G of one time step."""
    dx, dz = F.shape
    for r in range(dz - dx):
        for j in range(dx):
            rows[r, j] = columns[j, r] = K[r, j]
        for j in range(dx, dz):
            rows[r, j] = columns[j, r] = lower[r, j - dx]
    for i in range(dz):
        for j in range(i + 1):
            even[i, j] = even[j, i] = 0.5 * (C[i, j] + C[j, i])
    kernels.multiply(F[:, dx:], rows, new_F)
    kernels.multiply(even[:, dx:], rows, W)
    for i in range(dx):
        for j in range(dx):
            new_F[i, j] += F[i, j]
    for i in range(dz):
        for j in range(dx):
            W[i, j] += even[i, j]
    kernels.multiply_symmetric(columns, W[dx:], new_C)  # their sum with what follows is symmetric
    for i in range(dx):
        for j in range(i + 1):
            new_C[i, j] += W[i, j]
            new_C[j, i] = new_C[i, j]


@loop
def _whiten(
    F: FloatArray,
    C: FloatArray,
    c: FloatArray,
    K: FloatArray,
    k: FloatArray,
    lower: FloatArray,
    new_F: FloatArray,
    offset: FloatArray,
    new_C: FloatArray,
    new_c: FloatArray,
    rows: FloatArray,
    columns: FloatArray,
    even: FloatArray,
    W: FloatArray,
    h: FloatArray,
) -> None:
    """Fill the results of all conditions and time steps."""
    M, T, dx, dz = F.shape
    du = dz - dx
    for m in range(M):
        for t in range(T):
            _whiten_step(F[m, t], C[m, t], K[m, t], lower[m, t], rows, columns, even, W, new_F[m, t], new_C[m, t])
            for i in range(dz):
                h[i] = c[m, t, i]
                for r in range(du):
                    h[i] += C[m, t, i, dx + r] * k[m, t, r]
            for i in range(dz):
                new_c[m, t, i] = h[i] if i < dx else 0.0
            for r in range(du):
                for i in range(dz):
                    new_c[m, t, i] += rows[r, i] * h[dx + r]
            for i in range(dx):
                for r in range(du):
                    offset[m, t, i] += F[m, t, i, dx + r] * k[m, t, r]


def whiten_loops(F: FloatArray, C: FloatArray, c: FloatArray, K: FloatArray, k: FloatArray, lower: FloatArray) -> WhitenResult:
    """The same as ``whiten_numpy`` in plain loops: G is the unit matrix but for the rows of actions."""
    M, T, dx, dz = F.shape
    # one block: numpy asks for large pages for it, and the kernel clears few of them
    block = np.empty(F.size + C.size)
    new_F, new_C = block[: F.size].reshape(F.shape), block[F.size :].reshape(C.shape)
    offset, new_c = np.zeros((M, T, dx)), np.empty(c.shape)
    rows, columns, even, W = np.zeros((dz - dx, dz)), np.zeros((dz, dz - dx)), np.zeros((dz, dz)), np.zeros((dz, dz))
    _whiten(F, C, c, K, k, lower, new_F, offset, new_C, new_c, rows, columns, even, W, np.zeros(dz))
    return new_F, offset, new_C, new_c


def whiten(F: FloatArray, C: FloatArray, c: FloatArray, K: FloatArray, k: FloatArray, lower: FloatArray) -> WhitenResult:
    """The faster of the two, with the same arguments."""
    return (whiten_loops if compiles() else whiten_numpy)(F, C, c, K, k, lower)
