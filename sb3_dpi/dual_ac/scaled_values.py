"""V in units of its own: those of the returns, which it follows."""

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_dpi.common.critic import ReturnScale, rescale_values
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.dual_ac.constants import RETURNS_MEMORY
from sb3_dpi.dual_ac.rollout import RolloutsOfEpisodes
from sb3_dpi.trajopt.types import FloatArray


class ScaledValues(RolloutsOfEpisodes):
    """An algorithm whose value network predicts ``(V - mean) / std``."""

    return_rms: RunningMeanStd

    def _scale(self) -> ReturnScale:
        """Units of the value network; before returns are known V is zero in any, and constant where they do not vary."""
        if self.return_rms.count < 1.0:
            return ReturnScale(0.0, 0.0)
        return ReturnScale.measured(float(self.return_rms.mean), float(np.sqrt(self.return_rms.var)))

    def _values(self, batch: Batch) -> FloatArray:
        """V of all rows, in units of the rewards."""
        with th.no_grad():
            standard = self.policy.predict_values(batch.observations).reshape(-1).double().cpu().numpy()
        return self._scale().restore(standard)

    def _rescale_values(self, targets: FloatArray) -> None:
        """Follow the returns with the network's units; V stays what it was (van Hasselt et al. 2016)."""
        old = self._scale()
        # what early returns were like is forgotten
        self.return_rms.count = min(self.return_rms.count, RETURNS_MEMORY * targets.size)
        self.return_rms.update(targets.reshape(-1))
        rescale_values(self.policy, old, self._scale())
