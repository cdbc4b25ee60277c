"""Many simulations of one MuJoCo model side by side.

Where joints are all that a task reads, ``mujoco.rollout`` steps them in threads of its own. Forces and positions of bodies are
only in the data of a simulation: those are read after each step, by threads of Python's that MuJoCo lets run while it steps.
Both do what ``MujocoEnv.do_simulation`` does, to the last bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
from mujoco import rollout

from sb3_dpi.systems.physics import pack, part, unpack
from sb3_dpi.systems.tasks import Readings
from sb3_dpi.trajopt.types import FloatArray

FULL_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


class Threads:
    """
    Workspaces of a model.

    :param model: of the simulation
    :param frame_skip: its steps in one of the task's
    :param n_threads: at most as many simulations at a time
    """

    def __init__(self, model: mujoco.MjModel, frame_skip: int, n_threads: int) -> None:
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        self.model, self.frame_skip = model, frame_skip
        self.datas = [mujoco.MjData(model) for _ in range(n_threads)]
        joints = 1 + model.nq + model.nv + model.na
        self.has_rollout = mujoco.mj_stateSize(model, FULL_PHYSICS) == joints and hasattr(rollout, "Rollout")

    def step(self, states: FloatArray, controls: FloatArray) -> FloatArray:
        """
        Take one step of the task.

        :param states: of ``physics``, ``[B, nx]``
        :param controls: ``[B, nu]``
        :return: ``[B, nx]``
        """
        following = np.empty_like(states)

        def work(rows: Sequence[int], data: mujoco.MjData) -> None:
            for b in rows:
                unpack(self.model, data, states[b])
                self._advance(data, controls[b])
                following[b] = pack(self.model, data)

        self._share(work, len(states))
        return following

    def read(self, states: FloatArray, names: Sequence[str]) -> Readings:
        """
        Read states.

        :param states: ``[B, nx]``
        :param names: of arrays of the data, beside the joints
        :return: ``[B]``
        """
        qpos, qvel, *more = (part(self.model, self.datas[0], states, name) for name in ("qpos", "qvel", *names))
        return Readings(qpos, qvel, dict(zip(names, more, strict=True)))

    def roll_out(self, states: FloatArray, controls: FloatArray, names: Sequence[str]) -> Readings:
        """
        Take steps of the task.

        :param states: where to begin, ``[B, nx]``
        :param controls: ``[B, T, nu]``
        :param names: of arrays of the data to read beside the joints
        :return: after each step, ``[B, T]``
        """
        if self.has_rollout and not names:
            return self._roll_out_joints(states, controls)
        B, T = controls.shape[:2]
        qpos, qvel = np.empty((B, T, self.model.nq)), np.empty((B, T, self.model.nv))
        more = {name: np.empty((B, T, *getattr(self.datas[0], name).shape)) for name in names}

        def work(rows: Sequence[int], data: mujoco.MjData) -> None:
            watched = [(more[name], getattr(data, name)) for name in names]
            for b in rows:
                unpack(self.model, data, states[b])
                for t in range(T):
                    self._advance(data, controls[b, t])
                    qpos[b, t], qvel[b, t] = data.qpos, data.qvel
                    for kept, now in watched:
                        kept[b, t] = now

        self._share(work, B)
        return Readings(qpos, qvel, more)

    def _advance(self, data: mujoco.MjData, control: FloatArray) -> None:
        data.ctrl[:] = control
        mujoco.mj_step(self.model, data, nstep=self.frame_skip)
        mujoco.mj_rnePostConstraint(self.model, data)

    def _share(self, work: Callable[[Sequence[int], mujoco.MjData], None], n_rows: int) -> None:
        n = min(len(self.datas), n_rows)
        shares = np.array_split(np.arange(n_rows), max(n, 1))
        if n <= 1:
            work(shares[0].tolist(), self.datas[0])
            return
        with ThreadPoolExecutor(n) as pool:
            list(pool.map(work, [share.tolist() for share in shares], self.datas))

    def _roll_out_joints(self, states: FloatArray, controls: FloatArray) -> Readings:
        nq, nv, nu = self.model.nq, self.model.nv, self.model.nu
        size = mujoco.mj_stateSize(self.model, FULL_PHYSICS)
        for data in self.datas:  # the rest of a state, as applied forces, is that of the workspaces
            unpack(self.model, data, states[0])
        B, T = controls.shape[:2]
        held = np.repeat(controls, self.frame_skip, axis=1).reshape(B, T * self.frame_skip, nu)
        n_threads = len(self.datas)
        with rollout.Rollout(nthread=n_threads if n_threads > 1 else 0) as pool:
            visited, _ = pool.rollout(
                self.model,
                self.datas if n_threads > 1 else self.datas[0],
                np.ascontiguousarray(states[:, :size]),
                held,
                initial_warmstart=np.ascontiguousarray(part(self.model, self.datas[0], states, "qacc_warmstart")),
            )
        after = visited[:, self.frame_skip - 1 :: self.frame_skip]
        return Readings(after[..., 1 : 1 + nq], after[..., 1 + nq : 1 + nq + nv])
