import math
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule

from sb3_dpi.common.action_units import is_bounded
from sb3_dpi.common.features import RandomFourierExtractor
from sb3_dpi.common.policies import StandardizedPolicy
from sb3_dpi.common.standardized import StandardizedCombinedExtractor
from sb3_dpi.dual_ac.constants import LARGEST_FIRST_STD, LARGEST_FIRST_SUM, LAST_STD


class MlpPolicy(StandardizedPolicy):
    """Actor and value function of standardised vector observations.

    :param observation_space: observation space, of vectors or numbers
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param log_std_init: initial log standard deviation, in units of the bounds; usual: -1 to 0. None takes
        ``first_log_std``
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        log_std_init: float | None = None,
        **kwargs: Any,
    ):
        log_std_init = first_log_std(action_space) if log_std_init is None else log_std_init
        super().__init__(observation_space, action_space, lr_schedule, log_std_init=log_std_init, **kwargs)


class RBFPolicy(MlpPolicy):
    """Actor and value function linear in random Fourier features of standardised observations, as in the paper.

    The value function is then solved for in closed form.

    :param observation_space: observation space, of vectors or numbers
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param net_arch: layers between the features and the last ones; none by default
    :param features_extractor_class: features extractor; ``features_extractor_kwargs`` has ``n_features`` and ``bandwidth``
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = RandomFourierExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[] if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )


class CnnPolicy(MlpPolicy):
    """The same for images.

    :param observation_space: image space
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param features_extractor_class: features extractor
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class MultiInputPolicy(MlpPolicy):
    """The same for dictionaries of images, vectors and numbers.

    :param observation_space: dictionary space
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param features_extractor_class: features extractor
    :param kwargs: as for ``ActorCriticPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = StandardizedCombinedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


def first_log_std(action_space: spaces.Space[Any]) -> float:
    """
    Noise to begin with: where there are many actions each has less.

    :param action_space: action space
    :return: log standard deviation of each action, in units of the bounds; the standard deviations sum to 3 at most. Without
        bounds 0, as PPO's
    """
    if isinstance(action_space, spaces.Box) and not is_bounded(action_space):
        return 0.0
    n_actions = math.prod(action_space.shape or (1,))
    return math.log(min(LARGEST_FIRST_STD, LARGEST_FIRST_SUM / n_actions))


def limit_noise(policy: ActorCriticPolicy, least: float, most: float, left: float) -> None:
    """
    Keep the standard deviation of Gaussian actions within limits; other policies have none.

    :param policy: changed in place
    :param least: in units of the bounds, it wins over ``most``
    :param most: at the beginning, falling to ``least``; 0 or infinite for no limit
    :param left: the progress that remains, from 1 to 0
    """
    if not hasattr(policy, "log_std"):
        return
    log_std = policy.log_std.data
    if 0.0 < most < math.inf:
        log_std.clamp_(max=math.log(max(least + (most - least) * max(left, 0.0), LAST_STD)))
    if least > 0.0:
        log_std.clamp_(min=math.log(least))
