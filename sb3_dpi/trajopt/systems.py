"""What a planner asks of the world: a system that it can step and linearise, and a cost that it can expand.

Problem: x_{t+1} = f(x_t, u_t) from a given x_0, minimise sum_{t < T} l_t(x_t, u_t) + l_T(x_T) (notes of CS285, chapter 9.3).

States may live on a manifold, as those of a free body do: a state then has ``nx`` numbers and its changes have ``dx`` of them.
``difference(a, b)`` is the change that leads from a to b, ``integrate(a, difference(a, b)) = b``, and all derivatives are by
changes: fx[i, j] says how the i-th component of the change of the next state answers to the j-th of the present one. In plain
vector spaces nx = dx, difference(a, b) = b - a and integrate(a, d) = a + d.

Shapes: B states side by side, T along a trajectory, dz = dx + du; states ``[B, nx]``, actions ``[B, du]``, fx ``[T, dx, dx]``,
fu ``[T, dx, du]``, second derivatives ``[T, dx, dz, dz]`` with z = [change of x; u].
"""

from typing import Protocol, runtime_checkable

from sb3_dpi.trajopt.types import FloatArray, IntArray, QuadraticCost, QuadraticValue


class System(Protocol):
    """What happens if: deterministic dynamics with first derivatives."""

    @property
    def state_dim(self) -> int:
        """nx, numbers in a state."""
        ...

    @property
    def tangent_dim(self) -> int:
        """dx, numbers in a change of state; nx in a vector space."""
        ...

    @property
    def action_dim(self) -> int:
        """du, numbers in an action."""
        ...

    def step(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """
        Let one time step pass.

        :param states: ``[B, nx]``
        :param actions: ``[B, du]``
        :return: next states, ``[B, nx]``
        """
        ...

    def linearize(self, states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """
        Differentiate the step.

        :param states: ``[T, nx]``
        :param actions: ``[T, du]``
        :return: fx ``[T, dx, dx]`` and fu ``[T, dx, du]``
        """
        ...

    def difference(self, origin: FloatArray, states: FloatArray) -> FloatArray:
        """
        Say which change leads from one state to another.

        :param origin: ``[..., nx]``
        :param states: ``[..., nx]``, of axes that broadcast
        :return: ``[..., dx]``, ``states - origin`` in a vector space
        """
        ...

    def integrate(self, origin: FloatArray, changes: FloatArray) -> FloatArray:
        """
        Change states.

        :param origin: ``[..., nx]``
        :param changes: ``[..., dx]``, of axes that broadcast
        :return: ``[..., nx]``, ``origin + changes`` in a vector space
        """
        ...


@runtime_checkable
class TwiceDifferentiable(Protocol):
    """A system that also gives second derivatives, for differential dynamic programming."""

    def hessians(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """
        Differentiate the step twice.

        :param states: ``[T, nx]``
        :param actions: ``[T, du]``
        :return: ``[T, dx, dz, dz]``, symmetric in the last two axes
        """
        ...


class Cost(Protocol):
    """What is minimised: a cost of each time step and one of the last state. Goals and weights are its own."""

    def value(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> FloatArray:
        """
        Evaluate the cost of time steps.

        :param states: ``[..., T, nx]``
        :param actions: ``[..., T, du]``
        :param time_steps: t of each, ``[T]``
        :return: ``[..., T]``
        """
        ...

    def expand(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> QuadraticCost:
        """
        Expand the cost of time steps to second order, in changes of state and of action.

        :param states: ``[T, nx]``
        :param actions: ``[T, du]``
        :param time_steps: t of each, ``[T]``
        :return: C ``[T, dz, dz]``, c ``[T, dz]``, const ``[T]`` around them
        """
        ...

    def final_value(self, states: FloatArray, time_step: int) -> FloatArray:
        """
        Evaluate the cost of the last state.

        :param states: ``[..., nx]``
        :param time_step: its t
        :return: ``[...]``
        """
        ...

    def expand_final(self, state: FloatArray, time_step: int) -> QuadraticValue:
        """
        Expand the cost of the last state to second order, in changes of it.

        :param state: ``[nx]``
        :param time_step: its t
        :return: V ``[dx, dx]``, v ``[dx]``, const ``[]`` around it
        """
        ...
