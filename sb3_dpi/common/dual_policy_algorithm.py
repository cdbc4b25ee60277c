"""The loop that the algorithms of dual policy iteration share."""

from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_dpi.common.choices import arguments_of_base
from sb3_dpi.common.collector import TrajectoryCollector
from sb3_dpi.common.interruption import reset_when_interrupted
from sb3_dpi.common.policies import (
    BoundedGaussianCnnPolicy,
    BoundedGaussianMultiInputPolicy,
    BoundedGaussianPolicy,
)
from sb3_dpi.common.saved_models import FORMAT_VERSION, SavedModel
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.common.trajectories import Trajectories, concatenate, map_observations
from sb3_dpi.trajopt.units import outlier_limit, spread_or_one

SelfDualPolicyAlgorithm = TypeVar("SelfDualPolicyAlgorithm", bound="DualPolicyAlgorithm")


class DualPolicyAlgorithm(SavedModel, TrajectoryCollector):
    """Dual policy iteration: an expert plans with a learned model, a reactive policy imitates it.

    Each iteration samples time-aligned trajectories from M initial conditions with the policy (or with what a subclass
    samples with); ``train`` then fits a model, improves the expert under it and trains the policy towards it: Sun et al.
    2018, Eq. 2, 4 and 5.

    Environments may differ: each then has its own initial conditions, model and expert, and one policy is trained on the sum
    of their objectives (section 6.3).

    :param policy: the policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: the environment to learn from (if registered in Gymnasium, can be str); its action space must be a Box. A list
        of ids, environments or functions that make one, or a VecEnv of these, trains one policy on all of them
    :param learning_rate: of the policy's optimizer, float or schedule; usual: 3e-4 to 3e-3
    :param horizon: time steps of a trajectory, planned and sampled; at most the environment's time limit. None takes the time
        limit, at most 100. Shorter horizons learn from fewer steps and often carry over to whole episodes
    :param n_conditions: initial conditions M of each environment in an iteration; usual: 1 to 20
    :param samples_per_condition: trajectories N from each condition; usual: 4 to 20. The number of trajectories is rounded
        up to a multiple of the number of environments
    :param conditions: ``"fresh"``: new reset seeds in every iteration; ``"fixed"``: always the same M seeds; ``"random"``:
        each trajectory starts from a seed of its own, so that a condition covers the distribution of initial states;
        ``"continue"``: each starts where the last one of its environment was cut, a window of an episode that goes on;
        ``"mixed"``: goes on or begins anew by the toss of a coin, so that neither early nor late states are forgotten
    :param replay: earlier iterations whose trajectories are kept: their conditions are planned for and imitated again beside
        the new ones; usual: 0 to 10
    :param gamma: discount factor; usual: .95 to 1
    :param noise_correlation: of the exploration noise of one time step with that of the next, from 0 (white) to below 1; the
        standard deviation stays that of the policy. Actions that last reach states which white noise does not; usual: 0 to .9
    :param stats_window_size: window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: seed for the pseudo random generators and for the initial conditions
    :param device: device (cpu, cuda, ...) on which the policy is trained
    :raises ValueError: if the observation holds nothing that a planner could use, or the horizon exceeds the time limit
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": BoundedGaussianPolicy,
        "CnnPolicy": BoundedGaussianCnnPolicy,
        "MultiInputPolicy": BoundedGaussianMultiInputPolicy,
    }
    renamed_arguments: ClassVar[dict[str, str]] = {
        "environments": "a list of environments as env, or an attribute environment_index of each",
    }
    """what to write instead of the arguments of earlier versions"""

    def __init__(
        self,
        policy: str | type[BoundedGaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        horizon: int | None,
        n_conditions: int | None,
        samples_per_condition: int | None,
        conditions: str,
        replay: int,
        gamma: float,
        noise_correlation: float = 0.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: Any = "auto",
    ):
        super().__init__(**arguments_of_base(locals(), TrajectoryCollector))
        self.replay = replay
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        self.past: tuple[Trajectories, ...] = ()
        """trajectories of the iterations that are kept, the latest first; they survive save and load"""

    def _setup_model(self) -> None:
        self._check_saved_format()
        super()._setup_model()

    def train(self) -> None:
        """One iteration of dual policy iteration on the trajectories in the buffer."""
        raise NotImplementedError

    def recall(self) -> Trajectories:
        """Read this iteration's trajectories from the buffer, and remember them.

        :return: those of the iterations that are kept stand behind the latest ones; rewards that are outliers are cut
        """
        latest = self.rollout_buffer.trajectories()
        M, _, T = latest.alive.shape
        kept = [past for past in self.past if (past.alive.shape[0], past.alive.shape[2]) == (M, T)]
        together = (latest, *kept)
        self.past = together[: self.replay]
        trajectories = concatenate(together)
        limit = outlier_limit(trajectories.rewards[trajectories.alive])
        return replace(trajectories, rewards=np.clip(trajectories.rewards, -limit, limit))

    def standardize(self, trajectories: Trajectories) -> None:
        """Let the policy standardise its inputs by what was sampled; its function stays what it was.

        :param trajectories: of this iteration and those that are kept
        """
        extractor = self.policy.pi_features_extractor
        if not isinstance(extractor, Standardizing) or not len(extractor.columns):
            return
        seen = map_observations(lambda array: array[:, :, :-1][trajectories.alive], trajectories.observations)
        flat = extractor.vectors(self._policy_inputs(seen)).astype(np.float64)
        mean = flat.mean(0)
        self.policy.set_standardization(*extractor.in_features(mean, spread_or_one(flat.std(0), mean)))

    def _end_iteration(self) -> None:
        """Count the iteration, and log what every algorithm logs of one."""
        self.n_iterations += 1
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # the last iteration is completed beyond the total, which no schedule expects
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    @reset_when_interrupted
    def learn(
        self: SelfDualPolicyAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DualPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDualPolicyAlgorithm:
        """Learn until ``total_timesteps`` real environment steps have been taken; the last iteration is completed.

        :param total_timesteps: real steps, every one counted
        :param callback: called at every step
        :param log_interval: iterations between logs, None for none
        :param tb_log_name: the name of the run for tensorboard
        :param reset_num_timesteps: whether to reset the current timestep number
        :param progress_bar: display a progress bar
        :return: the trained model
        """
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
