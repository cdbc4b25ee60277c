"""V-functions, where Q is not wanted: what the policy that took the latest real steps has earned, by TD(lambda).

It is the critic of on-policy methods, right where the model is not, and late where the policy has moved on.

Shapes: ``n`` steps in the order of time.
"""

import numpy as np
import torch as th

from sb3_dpi.trajopt.discounting import lambda_returns
from sb3_dpi.world_model.critic import Critic, CriticData, CriticUpdate, Learner, SoftTwinQ
from sb3_dpi.world_model.types import stretch_ends

LATEST = 5000
"""Real steps that V learns from."""
REAL_LAMBDA = 0.95


class ReturnsV(Critic):
    """V by TD(lambda) on the latest real steps."""

    uses_actions = False
    _states: th.Tensor
    _returns: th.Tensor

    @th.no_grad()
    def begin(self, data: CriticData, learner: Learner, rng: np.random.Generator) -> None:
        """
        Compute the returns of the latest real steps.

        :param data: real steps
        :param learner: its discount factor counts: the returns are those of the policies that acted
        :param rng: not used
        """
        rows = data.memory.newest(LATEST)
        steps, ends = data.memory.take(rows), stretch_ends(data.memory, rows)
        seen = self.read(data.ensemble.standardize(steps.next_states), slow=True)
        values = self.bound(self.targets(seen)[..., 0].mean(0))
        ahead = values.cpu().numpy().astype(np.float64)
        following, ends = np.where(steps.terminated, 0.0, ahead), ends | steps.terminated
        returns = lambda_returns(steps.rewards / float(self.unit), following, ends, learner.gamma, REAL_LAMBDA)
        self._states = data.ensemble.standardize(steps.states)
        self._returns = th.as_tensor(returns, dtype=th.float32, device=values.device)

    def learn(
        self, data: CriticData, n_updates: int, batch_size: int, learner: Learner, rng: np.random.Generator
    ) -> CriticUpdate:
        """
        Take steps of the optimizer towards the returns.

        :param data: not used beyond ``begin``
        :param n_updates: K
        :param batch_size: B
        :param learner: says how fast the slow copies follow
        :param rng: draws minibatches
        :return: what the updates did
        """
        loss = 0.0
        for rows in rng.integers(len(self._returns), size=(n_updates, batch_size)):
            loss += self.descend(self.read(self._states[rows]), self._returns[rows], learner.tau) / n_updates
        return CriticUpdate(loss, float(self._returns.mean()))


CRITICS: dict[str, type[Critic]] = {"q": SoftTwinQ, "returns": ReturnsV}
"""Critics by name."""
