"""An ensemble as it is now, for many imagined steps without derivatives: what does not change is computed once.

Shapes: ``E`` members, ``n`` rows, states ``[E, n, dx]`` or ``[n, dx]``, actions likewise.
"""

import torch as th

from sb3_dpi.world_model.backends.arrays import CHANGE_LIMIT
from sb3_dpi.world_model.ensemble import Ensemble


class FrozenEnsemble:
    """
    What ``Ensemble`` predicts, in less time.

    :param ensemble: may not learn meanwhile
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.networks = ensemble.networks.frozen()
        self.offset, self.gain = ensemble.change_offset, ensemble.change_gain
        self.reward_mean, self.reward_std = ensemble.change_mean[-1].float(), ensemble.change_std[-1].float()
        self.low, self.high = ensemble.state_low.float(), ensemble.state_high.float()
        self.never_ends = ensemble.known_end is None and not ensemble.sees_deaths
        """whether all episodes go on for sure"""

    @th.no_grad()
    def predict(self, states: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Take one imagined step with every member.

        :param states: standardised
        :param actions: in units of the bounds
        :return: as ``Ensemble.predict``
        """
        outputs = self.networks(th.cat([states, actions], dim=-1)).clamp_(-CHANGE_LIMIT, CHANGE_LIMIT)
        following = (states + self.offset).addcmul(outputs[..., :-1], self.gain)
        return following, self.reward_mean + self.reward_std * outputs[..., -1]

    def clip(self, states: th.Tensor) -> th.Tensor:
        """
        Keep predicted states in the range of what was seen, as ``Ensemble.clip``.

        :param states: are overwritten, ``[..., dx]``
        :return: the same tensor
        """
        return states.clamp_(self.low, self.high)
