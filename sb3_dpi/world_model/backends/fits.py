"""Steps of Adam on minibatches: of the ensemble, of the termination network, of the soft Q-functions."""

import numpy as np

from sb3_dpi.world_model.backends import elementwise
from sb3_dpi.world_model.backends.arrays import AdamArrays, CriticBatches, Floats, NetworkArrays, PolicyArrays
from sb3_dpi.world_model.backends.mlp import Draw, Stack, Tape, with_ones

f32 = np.float32
_let_diverge = np.errstate(over="ignore", invalid="ignore")  # the caller looks whether parameters are finite


class _Descent:
    """Steps of Adam on the tape of a network.

    :param tape: of the passes
    :param network: what is fitted
    :param adam: where its optimizer stands
    """

    def __init__(self, tape: Tape, network: NetworkArrays, adam: AdamArrays):
        self.tape, self.network, self.adam = tape, network, adam
        self.gradient = Stack(np.empty_like(network.flat), network.sizes)
        self.taken = adam.step

    def step(self, slope: Floats) -> None:
        """
        Take one.

        :param slope: derivative of the loss by the outputs of the tape's last forward pass
        """
        adam = self.adam
        self.taken += 1
        self.tape.backward(slope)
        self.tape.by_parameters(slope, self.gradient)
        elementwise.adam_step(
            self.network.flat,
            self.gradient.flat,
            adam.first,
            adam.second,
            adam.rate / (1.0 - adam.beta_1**self.taken),
            1.0 - adam.beta_2**self.taken,
            adam.beta_1,
            adam.beta_2,
            adam.epsilon,
        )


def _before_ones(inputs: Floats) -> Floats:
    room = with_ones(*inputs.shape)
    room[..., :-1] = inputs
    return room


@_let_diverge
def fit_ensemble(network: NetworkArrays, adam: AdamArrays, inputs: Floats, targets: Floats) -> float:
    """
    Steps on the Huber loss, each member on minibatches of its own.

    :param network: E members, changed in place
    :param adam: moments of its optimizer, changed in place
    :param inputs: ``[K, E, B, n_in]``
    :param targets: ``[K, E, B, n_out]``
    :return: mean loss, zero without steps
    """
    tape = Tape(network, inputs.shape[2])
    descent = _Descent(tape, network, adam)
    total = 0.0
    for batch, goal in zip(_before_ones(inputs), targets, strict=True):
        tape.inputs = batch
        slope = tape.forward()
        total += elementwise.huber(slope, goal)
        descent.step(slope)
    return total / max(len(inputs), 1)


@_let_diverge
def fit_classifier(network: NetworkArrays, adam: AdamArrays, inputs: Floats, labels: Floats) -> None:
    """
    Steps on the cross entropy.

    :param network: of one member with one output, changed in place
    :param adam: moments of its optimizer, changed in place
    :param inputs: ``[K, B, n_in]``
    :param labels: 0 or 1, ``[K, B]``
    """
    tape = Tape(network, inputs.shape[1])
    descent = _Descent(tape, network, adam)
    for batch, goal in zip(_before_ones(inputs[:, None]), labels, strict=True):
        tape.inputs = batch
        slope = tape.forward()
        elementwise.cross_entropy(slope[0, :, 0], goal)
        descent.step(slope)


@_let_diverge
def update_critic(
    network: NetworkArrays,
    slow: Floats,
    adam: AdamArrays,
    tau: float,
    policy: PolicyArrays,
    batches: CriticBatches,
    temperature: float,
    gamma: float,
    low: float,
    high: float,
) -> tuple[float, float]:
    """
    Updates of twin soft Q-functions and their slow copies.

    :param network: two members that read states and actions, changed in place
    :param slow: the copies, ``[2, P]``, changed in place
    :param adam: moments of the optimizer, changed in place
    :param tau: by how much the copies follow at each update
    :param policy: draws the next actions
    :param batches: what is learned from, rewards in units of value
    :param temperature: alpha
    :param gamma: discount factor
    :param low: of the slow networks' values
    :param high: likewise
    :return: mean loss, and the mean of the last targets
    """
    K, B, dx = batches.states.shape
    acting, tape = Tape(policy.network, B), Tape(network, B)
    tape.inputs = tape.inputs[:1]  # the same for both members
    fast_stack, slow_stack = tape.stack, Stack(slow, network.sizes)
    descent, draw = _Descent(tape, network, adam), Draw(B, batches.actions.shape[2])
    targets: Floats = np.empty(B, f32)
    reads = _before_ones(batches.next_states[:, None])
    total, mean = 0.0, 0.0
    for k in range(K):
        acting.inputs = reads[k]
        draw.sample(policy, acting.forward()[0], batches.noise[k])
        elementwise.join(batches.next_states[k], draw.actions, dx, tape.inputs[0])
        tape.stack = slow_stack
        mean = elementwise.soft_targets(
            batches.rewards[k],
            batches.continuation[k],
            tape.forward()[:, :, 0],
            draw.log_probs,
            (float(low), float(high)),
            float(temperature),
            float(gamma),
            targets,
        )
        elementwise.join(batches.states[k], batches.actions[k], dx, tape.inputs[0])
        tape.stack = fast_stack
        slope = tape.forward()
        total += elementwise.huber(slope, targets[None, :, None]) / K
        descent.step(slope)
        elementwise.polyak(slow, network.flat, float(tau))
    return total, mean
