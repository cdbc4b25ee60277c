"""The state of MuJoCo's simulation as one vector, its changes, and its derivatives.

A vector has what MuJoCo integrates from (``mjSTATE_INTEGRATION``: without the solver's warm start a copy of Ant is 1e-14 off)
and then what tasks read before they step: positions of bodies and the like are computed at the beginning of a step of the
simulation, so that they lag behind the joints, and rewards of motion are differences of such.

A change of state is ``[change of qpos; change of qvel; change of act]``, that of qpos in the tangent space: a free body has
seven coordinates and six of these. The rest of a vector belongs to neither, and stays what it was.

Shapes: states ``[nx]``, changes ``[dx]``, dx = 2 nv + na.
"""

from dataclasses import dataclass

import mujoco
import numpy as np

from sb3_dpi.trajopt.types import FloatArray

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
LAGGING = (
    "xpos",
    "xquat",
    "xipos",
    "geom_xpos",
    "site_xpos",
    "cinert",
    "cvel",
    "cfrc_ext",
    "qfrc_constraint",
    "qfrc_actuator",
    "actuator_force",
    "sensordata",
)
"""What the tasks of Gymnasium read of the data beside its state."""
FIRST_WIDTH = 1e-6
"""Width of central differences in the tangent space, that of MuJoCo's documentation."""


def tangent_size(model: mujoco.MjModel) -> int:
    """:return: dx"""
    return int(2 * model.nv + model.na)


def numbers_of(model: mujoco.MjModel) -> bytes:
    """:return: all that is in a model"""
    written = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, written)
    return written.tobytes()


def pack(model: mujoco.MjModel, data: mujoco.MjData) -> FloatArray:
    """
    Read the state.

    :param model: of the simulation
    :param data: its
    :return: ``[nx]``
    """
    state = np.empty(int(mujoco.mj_stateSize(model, INTEGRATION)))
    mujoco.mj_getState(model, data, state, INTEGRATION)
    return np.concatenate([state, *(getattr(data, name).reshape(-1) for name in LAGGING)])


def unpack(model: mujoco.MjModel, data: mujoco.MjData, state: FloatArray) -> None:
    """
    Set the state.

    :param model: of the simulation
    :param data: its
    :param state: of ``pack``, ``[nx]``
    """
    end = int(mujoco.mj_stateSize(model, INTEGRATION))
    mujoco.mj_setState(model, data, state[:end], INTEGRATION)
    for name in LAGGING:
        array = getattr(data, name)
        array[...] = state[end : end + array.size].reshape(array.shape)
        end += array.size


def part(model: mujoco.MjModel, data: mujoco.MjData, states: FloatArray, name: str) -> FloatArray:
    """
    Read an array of the data from many states at once.

    :param model: of the simulation
    :param data: its, for the sizes
    :param states: ``[..., nx]``
    :param name: ``"qpos"``, ``"qvel"``, ``"qacc_warmstart"``, or one of ``LAGGING``
    :return: ``[..., *]``
    """
    sizes = {"time": 1, "qpos": model.nq, "qvel": model.nv, "act": model.na, "qacc_warmstart": model.nv}
    if name in sizes:
        begin = sum(size for before, size in sizes.items() if list(sizes).index(before) < list(sizes).index(name))
    else:
        before = LAGGING[: LAGGING.index(name)]
        begin = int(mujoco.mj_stateSize(model, INTEGRATION)) + sum(getattr(data, other).size for other in before)
    array = getattr(data, name)
    return states[..., begin : begin + array.size].reshape(*states.shape[:-1], *array.shape)


@dataclass(frozen=True)
class Tangent:
    """Changes of vectors of one model."""

    model: mujoco.MjModel

    def difference(self, origin: FloatArray, states: FloatArray) -> FloatArray:
        """
        Say which change leads from one state to another.

        :param origin: ``[..., nx]``
        :param states: ``[..., nx]``, of axes that broadcast
        :return: ``[..., dx]``
        """
        nq, nv = self.model.nq, self.model.nv
        a, b = np.broadcast_arrays(origin, states)
        change = np.empty((*a.shape[:-1], tangent_size(self.model)))
        change[..., nv:] = (b - a)[..., 1 + nq : 1 + nq + nv + self.model.na]
        if nq == nv:
            change[..., :nv] = (b - a)[..., 1 : 1 + nq]
            return change
        for index in np.ndindex(a.shape[:-1]):
            mujoco.mj_differentiatePos(self.model, change[index][:nv], 1.0, a[index][1 : 1 + nq], b[index][1 : 1 + nq])
        return change

    def integrate(self, origin: FloatArray, changes: FloatArray) -> FloatArray:
        """
        Change states.

        :param origin: ``[..., nx]``
        :param changes: ``[..., dx]``, of axes that broadcast
        :return: ``[..., nx]``
        """
        nq, nv = self.model.nq, self.model.nv
        shape = np.broadcast_shapes(origin.shape[:-1], changes.shape[:-1])
        states = np.broadcast_to(origin, (*shape, origin.shape[-1])).copy()
        states[..., 1 + nq : 1 + nq + nv + self.model.na] += changes[..., nv:]
        if nq == nv:
            states[..., 1 : 1 + nq] += changes[..., :nv]
            return states
        changes = np.broadcast_to(changes, (*shape, changes.shape[-1]))
        for index in np.ndindex(shape):
            mujoco.mj_integratePos(self.model, states[index][1 : 1 + nq], changes[index][:nv].copy(), 1.0)
        return states


def transition_derivatives(
    model: mujoco.MjModel, data: mujoco.MjData, state: FloatArray, control: FloatArray, frame_skip: int
) -> tuple[FloatArray, FloatArray]:
    """
    Differentiate a step of several of the simulation's, one after the other (``mjd_transitionFD``).

    :param model: of the simulation, whose integrator is not Runge-Kutta's
    :param data: a workspace
    :param state: ``[nx]``
    :param control: held over the step, ``[nu]``
    :param frame_skip: steps of the simulation
    :return: fx ``[dx, dx]`` and fu ``[dx, nu]``
    """
    dx = tangent_size(model)
    fx, fu = np.eye(dx), np.zeros((dx, model.nu))
    A, B = np.empty((dx, dx)), np.empty((dx, model.nu))
    unpack(model, data, state)
    data.ctrl[:] = control
    for _ in range(frame_skip):
        mujoco.mjd_transitionFD(model, data, FIRST_WIDTH, True, A, B, None, None)
        fx, fu = A @ fx, A @ fu + B
        mujoco.mj_step(model, data)
    return fx, fu
