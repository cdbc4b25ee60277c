"""The gradient of imagined windows by hand: the mathematics of ``pathwise``.

Window i of member e is row ``e m + i``. Derivatives are those of the mean over the n = E m windows.
"""

import numpy as np

from sb3_dpi.world_model.backends import elementwise
from sb3_dpi.world_model.backends.arrays import Floats, ModelArrays, NetworkArrays, PolicyArrays, WindowArrays
from sb3_dpi.world_model.backends.mlp import Draw, Stack, Tape, half_range

f32 = np.float32


class _Imagination:
    """What happens in windows, and how that changes with the policy.

    :param policy: acts
    :param model: of E members
    :param termination: None where episodes do not end
    :param windows: where to begin
    """

    def __init__(
        self, policy: PolicyArrays, model: ModelArrays, termination: NetworkArrays | None, windows: WindowArrays
    ) -> None:
        (H, n, dx), du = windows.state_residuals.shape, windows.noise.shape[2]
        E = len(model.network.flat)
        self.policy, self.model, self.windows = policy, model, windows
        self.acting, stepping = Tape(policy.network, n, H + 1), Tape(model.network, n // E, H, learns=False)
        self.acts = [self.acting.at(t) for t in range(H + 1)]
        self.draws = [Draw(n, du) for _ in range(H + 1)]
        self.steps, self.ends = [stepping.at(t) for t in range(H)], []
        if termination is not None:
            ending = Tape(termination, n, H, learns=False)
            self.ends = [ending.at(t) for t in range(H)]
        self.states = self.acting.inputs.reshape(H + 1, n, dx + 1)
        """before a column of ones"""
        self.rewards = windows.reward_residuals.copy()
        self.inside, self.within = np.empty((H, n, dx + 1), f32), np.empty((H, n, dx), f32)
        self.alive, self.chances = np.ones((H + 1, n), f32), np.ones((H, n), f32)
        self.by_output: Floats = np.empty((H + 1, n, 2 * du), f32)
        """derivative by the outputs of the policy's network"""
        # for the backward pass of one step
        self.by_input: Floats = np.empty((n, dx + du), f32)
        self.by_state: Floats = np.empty((n, dx), f32)
        self.by_continuation: Floats = np.zeros((n, dx), f32)
        self.by_change: Floats = np.empty((n, dx + 1), f32)

    def act(self, t: int) -> None:
        """
        Draw actions.

        :param t: step
        """
        self.draws[t].sample(self.policy, self.acts[t].forward()[0], self.windows.noise[t])

    def follow(self, t: int) -> None:
        """
        Take an imagined step.

        :param t: step
        """
        model, states, following = self.model, self.states[t], self.states[t + 1]
        n, dx = self.by_state.shape
        elementwise.join(states, self.draws[t].actions, dx, self.steps[t].inputs.reshape(n, -1))
        outputs = self.steps[t].forward().reshape(n, dx + 1)
        elementwise.follow(
            outputs,
            states,
            self.windows.state_residuals[t],
            model.gain,
            model.offset,
            float(model.reward_mean),
            float(model.reward_std),
            model.state_low,
            model.state_high,
            following,
            self.rewards[t],
            self.inside[t],
            self.within[t],
        )
        if self.ends:
            self.ends[t].inputs = following[None]
            logits = self.ends[t].forward()[0, :, 0]
            elementwise.survive(logits, self.alive[t], self.chances[t], self.alive[t + 1])

    def follow_backward(self, t: int, by_alive: Floats, weights: Floats) -> None:
        """
        Take ``by_input`` one step back.

        :param t: step
        :param by_alive: derivative by having come to its end
        :param weights: derivative by its rewards
        """
        model, (n, dx) = self.model, self.by_state.shape
        if self.ends:
            slope = self.ends[t].outputs
            elementwise.survive_backward(by_alive, self.alive[t + 1], self.chances[t], slope[0, :, 0])
            self.ends[t].backward(slope)
            self.ends[t].by_inputs(self.by_continuation[None])
        elementwise.follow_backward(
            self.by_input,
            self.by_continuation,
            weights,
            model.gain,
            float(model.reward_std),
            self.inside[t],
            self.within[t],
            self.by_state,
            self.by_change,
        )
        E = len(model.network.flat)
        self.steps[t].backward(self.by_change.reshape(E, n // E, dx + 1))
        self.steps[t].by_inputs(self.by_input.reshape(E, n // E, -1))
        elementwise.add_columns(self.by_input, self.by_state)

    def act_backward(self, t: int, temperature: float, weights: Floats) -> None:
        """
        Add to ``by_input`` what comes through the policy.

        :param t: step
        :param temperature: alpha
        :param weights: of the step's gain
        """
        draw, act, slope = self.draws[t], self.acts[t], self.by_output[t]
        half = half_range(self.policy)
        noise = self.windows.noise[t]
        elementwise.sample_backward(
            noise, draw.actions, draw.stds, draw.bounded, half, self.by_input, weights, temperature, slope
        )
        act.backward(slope[None])
        if t > 0:
            elementwise.add_columns(self.by_input, act.by_inputs(self.by_state[None])[0])

    def gradient(self) -> Floats:
        """
        After ``act_backward`` of all steps.

        :return: derivative by the policy's parameters, ``[P]``
        """
        network = self.policy.network
        gradient = np.empty_like(network.flat)
        self.acting.by_parameters(self.by_output[:, None], Stack(gradient, network.sizes))
        return gradient.reshape(-1)


@np.errstate(over="ignore", invalid="ignore")  # the caller looks whether the gradient is finite
def window_gradient(
    policy: PolicyArrays,
    model: ModelArrays,
    termination: NetworkArrays | None,
    critic: NetworkArrays,
    windows: WindowArrays,
    temperature: float,
    gamma: float,
) -> tuple[Floats, float, float]:
    """
    The gradient of J, see ``pathwise``.

    :param policy: whose parameters are moved
    :param model: of E members
    :param termination: logit of an episode's end from the state that is come to, of one member; None where none has ended
    :param critic: two members that read the state, or state and action; their mean closes windows, in units of value
    :param windows: where to begin, what corrects them, and the noise
    :param temperature: alpha, in units of value
    :param gamma: discount factor
    :return: gradient ``[P]``, J, and the entropy
    """
    H, n, alpha = *windows.reward_residuals.shape, float(temperature)
    imagined = _Imagination(policy, model, termination, windows)
    imagined.states[0, :, :-1] = windows.states
    for t in range(H):
        imagined.act(t)
        imagined.follow(t)
    imagined.act(H)
    closing, n_in, dx = Tape(critic, n), critic.sizes[0], windows.states.shape[1]
    closing.inputs = closing.inputs[:1]  # the same for both members
    elementwise.join(imagined.states[H], imagined.draws[H].actions, dx, closing.inputs[0])
    values, weights, by_alive = closing.forward()[:, :, 0].mean(0), np.empty(n, f32), np.zeros(n, f32)
    alive, log_probs = imagined.alive, [draw.log_probs for draw in imagined.draws]
    last = elementwise.earn(gamma**H / n, alpha, alive[H], values, log_probs[H], alive[H], weights, by_alive)
    closing.backward((f32(0.5) * weights)[None, :, None])
    imagined.by_input[:, n_in:] = 0.0
    imagined.by_input[:, :n_in] = closing.by_inputs(np.empty((2, n, n_in), f32)).sum(0)
    imagined.act_backward(H, alpha, weights)
    objective = last
    for t in range(H - 1, -1, -1):
        # the step's rewards weigh as much as coming to it is likely, known before its own gain is counted
        came = by_alive.copy()
        rewards, chances = imagined.rewards[t], imagined.chances[t]
        objective += elementwise.earn(gamma**t / n, alpha, alive[t], rewards, log_probs[t], chances, weights, by_alive)
        imagined.follow_backward(t, came, weights)
        imagined.act_backward(t, alpha, weights)
    return imagined.gradient(), objective, -float(np.mean(log_probs))
