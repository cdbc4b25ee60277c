"""Times of the planners' passes beside crocoddyl's, each on the same arrays, without any call of a model.

::

    OMP_NUM_THREADS=1 python benchmarks/planners.py                           # ours alone
    OMP_NUM_THREADS=1 python benchmarks/planners.py --peer ENV/bin/python     # ENV: another virtual environment with crocoddyl

Processor time of the thread, least and median of many runs; runs of ours and of the peer follow each other on the same
machine, which should have nothing else to do. A backward pass of crocoddyl is ``SolverFDDP.backwardPass`` (``SolverBoxFDDP``
where actions have limits) of linear-quadratic action models, one problem for each condition.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np

RUNS = 30
SIZES = {"pr2": (100, 26, 7, 4), "pendulum": (200, 2, 1, 1), "quadrotor": (100, 12, 4, 1)}
"""T, dx, du and conditions"""
LIMIT = 0.3
"""Of the steps of an action, where there are limits"""


def arrays(name: str) -> dict[str, np.ndarray]:
    """:return: stable dynamics and a convex cost of each condition"""
    T, dx, du, M = SIZES[name]
    rng = np.random.default_rng(0)
    F = np.concatenate([0.9 * rng.normal(size=(M, T, dx, dx)) / np.sqrt(dx), rng.normal(size=(M, T, dx, du))], -1)
    root = rng.normal(size=(M, T, dx + du, dx + du)) / np.sqrt(dx + du)
    return {"F": F, "C": root @ np.swapaxes(root, -1, -2) + np.eye(dx + du), "c": rng.normal(size=(M, T, dx + du))}


def timed(job: Callable[[], Any]) -> tuple[float, float]:
    """:return: least and median milliseconds"""
    job()
    spent = []
    for _ in range(RUNS):
        begin = time.thread_time()
        job()
        spent.append(1e3 * (time.thread_time() - begin))
    return min(spent), statistics.median(spent)


def our_times() -> dict[str, tuple[float, float]]:
    """:return: of each job"""
    from sb3_dpi.trajopt.box_pass import box_pass
    from sb3_dpi.trajopt.kernels import lqr_pass
    from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, LinearGaussianDynamics, QuadraticCost
    from sb3_dpi.trajopt.whitened import WhitenedProblem

    found = {}
    for name, (T, dx, du, M) in SIZES.items():
        given = arrays(name)
        F, C, c = given.values()
        none, end, still = np.zeros((0, dx, dx + du, dx + du)), np.eye(dx), np.zeros(dx)
        for limit, kind in ((np.inf, "backward"), (LIMIT, "backward in limits")):
            room = np.full((T, du), limit)

            def backward(F: Any = F, C: Any = C, c: Any = c, room: Any = room, rest: Any = (end, still, none)) -> None:
                for m in range(len(F)):
                    box_pass(F[m], C[m], c[m], *rest, -room, room, 0.0)

            found[f"{name}, {kind}"] = timed(backward)
        shape = (M, T)
        dynamics = LinearGaussianDynamics(F, np.zeros((*shape, dx)), np.broadcast_to(0.1 * np.eye(dx), (*shape, dx, dx)))
        cost = QuadraticCost(C, c, np.zeros(shape))
        noise = np.broadcast_to(np.eye(du), (*shape, du, du))
        reference = LinearGaussianController(np.zeros((*shape, du, dx)), np.zeros((*shape, du)), noise)
        initial = GaussianState(np.zeros((M, dx)), np.broadcast_to(np.eye(dx), (M, dx, dx)))

        def build(parts: Any = (dynamics, cost, reference, initial)) -> WhitenedProblem:
            return WhitenedProblem.build(*parts, 1.0)

        p, eta = build(), np.ones(shape)
        found[f"{name}, KL-LQR set-up"] = timed(build)
        parts = (p.F, p.f, p.noise, p.C, p.c, p.mean0, p.cov0, eta, 1.0)
        found[f"{name}, KL-LQR backward, covariance and KL"] = timed(lambda parts=parts: lqr_pass(*parts))
    return found


def peer_times() -> dict[str, tuple[float, float]]:
    """:return: of crocoddyl's backward passes, in the environment that has it"""
    import crocoddyl

    found = {}
    for name, (_, dx, du, _) in SIZES.items():
        F, C, c = arrays(name).values()
        for limit, kind in ((None, "backward"), (LIMIT, "backward in limits")):
            solvers = []
            for m in range(len(F)):
                models = []
                for t in range(F.shape[1]):
                    A, B, Q, q = F[m, t, :, :dx], F[m, t, :, dx:], C[m, t], c[m, t]
                    weights = Q[:dx, :dx], Q[dx:, dx:], Q[:dx, dx:]
                    model = crocoddyl.ActionModelLQR(A, B, *weights, np.zeros(dx), q[:dx], q[dx:])
                    if limit is not None:
                        model.u_lb, model.u_ub = -limit * np.ones(du), limit * np.ones(du)
                    models.append(model)
                end = np.eye(dx), np.zeros((dx, du)), np.eye(dx), np.eye(du), np.zeros((dx, du))
                last = crocoddyl.ActionModelLQR(*end, np.zeros(dx), np.zeros(dx), np.zeros(du))
                problem = crocoddyl.ShootingProblem(np.zeros(dx), models, last)
                solver = crocoddyl.SolverFDDP(problem) if limit is None else crocoddyl.SolverBoxFDDP(problem)
                solver.setCandidate([np.zeros(dx)] * (F.shape[1] + 1), [np.zeros(du)] * F.shape[1], False)
                solver.computeDirection(True)
                solvers.append(solver)

            def backward(solvers: Any = solvers) -> None:
                for solver in solvers:
                    solver.backwardPass()

            found[f"{name}, {kind}"] = timed(backward)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with crocoddyl")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_peer:
        print(json.dumps(peer_times()))
        return
    ours, peer = our_times(), {}
    if arguments.peer:
        told = subprocess.run([arguments.peer, __file__, "--as-peer"], check=True, capture_output=True, text=True).stdout
        peer = json.loads(told.splitlines()[-1])
    print(f"{'milliseconds, least (median)':45s}{'ours':>18s}{'crocoddyl':>18s}{'ratio':>8s}")
    for job, (least, median) in ours.items():
        row = f"{job:45s}{least:9.3f} ({median:.3f})"
        backward = peer.get(job) or peer.get(f"{job.split(',')[0]}, backward")
        if backward:
            row += f"{backward[0]:11.3f} ({backward[1]:.3f}){least / backward[0]:8.2f}"
        print(row)


if __name__ == "__main__":
    main()
