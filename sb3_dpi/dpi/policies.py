"""The reactive policy: a squashed Gaussian that planners can differentiate along imagined states."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_dpi.common.action_units import AnyBox, check_bounded
from sb3_dpi.common.planner_state import is_vector_space
from sb3_dpi.common.policies import STATE_KEY, ObservationReader
from sb3_dpi.dpi.constants import DEFAULT_WIDTHS
from sb3_dpi.world_model.actor import SquashedGaussian, log_std_of
from sb3_dpi.world_model.backends.numpy_networks import Weights, forward
from sb3_dpi.world_model.mlp import follow


def n_numbers(space: spaces.Space[Any]) -> int:
    """
    Size of a vector.

    :param space: its space
    :return: numbers in it
    """
    return int(np.prod(space.shape or ()))


def vector_spaces(observation_space: spaces.Space[Any]) -> dict[str, spaces.Box]:
    """
    The vectors that make up an observation.

    :param observation_space: Box, or dictionary of Boxes
    :return: by key, in the order in which they are joined; of a Box under an empty key
    :raises ValueError: if the policy would see less than the planner, or something that is no vector
    """
    named = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for key, space in named.items():
        where = f"under the key {key!r} " if key else ""
        if key == STATE_KEY and len(named) > 1:
            raise ValueError(
                f"DPI plans through its policy, which must see all that the planner sees: an observation with a hidden "
                f"{key!r} is for MDGPS and AggreVaTeD-OC"
            )
        if not is_vector_space(space):
            raise ValueError(
                f"DPI learns a model of vectors and found {space} {where}in the observation: images and discrete observations "
                "have no model here. Use an encoder's features as observation, or MDGPS with a vector beside the image"
            )
    return named  # type: ignore[return-value]


class ExtractedFeatures(nn.Module):
    """
    What an extractor finds in standardised states: it reads the observations behind them.

    :param extractor: of the observation space
    :param vectors: that make up an observation, as from ``vector_spaces``
    """

    obs_mean: th.Tensor
    obs_std: th.Tensor

    def __init__(self, extractor: BaseFeaturesExtractor, vectors: dict[str, spaces.Box]):
        super().__init__()
        self.extractor, self.features_dim = extractor, extractor.features_dim
        self.shapes = {key: space.shape for key, space in vectors.items()}
        self.sizes = [n_numbers(space) for space in vectors.values()]
        self.register_buffer("obs_mean", th.zeros(sum(self.sizes), dtype=th.float64))
        self.register_buffer("obs_std", th.ones(sum(self.sizes), dtype=th.float64))

    def forward(self, states: th.Tensor) -> th.Tensor:
        """
        Extract features.

        :param states: standardised, ``[n, dx]``
        :return: ``[n, features_dim]``
        """
        parts = (states.double() * self.obs_std + self.obs_mean).float().split(self.sizes, dim=1)
        obs = {key: part.reshape(-1, *shape) for (key, shape), part in zip(self.shapes.items(), parts, strict=True)}
        features: th.Tensor = self.extractor(obs[""] if "" in obs else obs)
        return features


class MlpPolicy(AnyBox, ObservationReader):
    """Squashed Gaussian policy of standardised vector observations; it acts by the Polyak average of what was learned lately.

    An extractor of the user's reads observations as ``predict`` is given them, but for what lies beyond ten standard
    deviations of all that was seen; imagined states are shown to it in the same units. As in SAC, policy and critic each have
    one, and the critic's slow copy another. Policy and critic are in train mode while they themselves are updated, as batch
    normalisation and dropout must know, and in eval mode where they act, plan, imagine or judge.

    :param observation_space: Box
    :param action_space: bounded Box
    :param lr_schedule: learning rate schedule
    :param use_sde: not supported; an argument because Stable-Baselines3 passes it
    :param net_arch: widths of the hidden layers, of the policy alone or as ``dict(pi=[...], qf=[...])`` with the critic's; two
        of one width have compiled loops. None: two of 64
    :param activation_fn: of the hidden layers; hardswish has compiled loops
    :param features_extractor_class: of what policy and critic read; ``FlattenExtractor`` and ``CombinedExtractor`` leave
        vectors as they are, which are then read standardised, and have compiled loops
    :param features_extractor_kwargs: for it
    :param normalize_images: without effect, observations are vectors; an argument because Stable-Baselines3's policies have it
    :param share_features_extractor: whether the critic reads the policy's features, which it does not change
    :param optimizer_class: of the policy, and another of the critic; Adam has compiled loops
    :param optimizer_kwargs: for both, beside their learning rates
    :param log_std_init: first log standard deviation, before tanh; usual: -1 to 0
    :param std_bounds: smallest and largest standard deviation; equal ones fix it
    :raises ValueError: if an argument has no meaning for vectors, or is out of range, or an action has no bounds
    """

    obs_mean: th.Tensor
    obs_std: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        use_sde: bool = False,
        net_arch: Sequence[int] | dict[str, Sequence[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Hardswish,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        share_features_extractor: bool = False,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        log_std_init: float = -0.7,
        std_bounds: Sequence[float] = (0.05, 1.5),
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        check_bounded(action_space)
        if use_sde:
            raise ValueError("DPI explores by noise that lasts, see preset={'noise_correlation': ...}: leave use_sde off")
        self.net_arch = _widths(net_arch)
        self.activation_fn, self.log_std_init, self.std_bounds = activation_fn, log_std_init, tuple(std_bounds)
        if not 0.0 < std_bounds[0] <= std_bounds[1]:
            raise ValueError(f"std_bounds must be positive and not fall, got {tuple(std_bounds)}")
        self.share_features_extractor = share_features_extractor
        self.vectors = vector_spaces(observation_space)
        state_dim = sum(n_numbers(space) for space in self.vectors.values())
        sizes = state_dim, int(np.prod(action_space.shape)), self.net_arch["pi"]
        bounds = std_bounds[0], std_bounds[1]
        self.actor = SquashedGaussian(*sizes, log_std_init, bounds, activation_fn, self.make_features())
        self.averaged = copy.deepcopy(self.actor).requires_grad_(False)
        self.register_buffer("obs_mean", th.zeros(state_dim, dtype=th.float64))
        self.register_buffer("obs_std", th.ones(state_dim, dtype=th.float64))
        self.optimizer = optimizer_class(self.actor.learned, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_features(self) -> ExtractedFeatures | None:
        """
        Make what a network reads of states.

        :return: None where it reads them as they are
        :raises ValueError: if the extractor is one of images
        """
        if issubclass(self.features_extractor_class, NatureCNN):
            raise ValueError(
                f"{self.features_extractor_class.__name__} reads images, and DPI learns a model of vectors: leave "
                "features_extractor_class out, or give one that reads vectors"
            )
        extractor = self.make_features_extractor()
        if type(extractor) in (FlattenExtractor, CombinedExtractor):
            return None
        return ExtractedFeatures(extractor, self.vectors)

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in either training or evaluation mode.

        :param mode: True while it is updated; the average, which is never updated but follows, stays in evaluation mode
        """
        super().set_training_mode(mode)
        self.averaged.eval()

    @property
    def state_dim(self) -> int:
        """Numbers in an observation."""
        return len(self.obs_mean)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = (
            *("net_arch", "activation_fn", "log_std_init", "std_bounds", "optimizer_class", "optimizer_kwargs"),
            *("features_extractor_class", "features_extractor_kwargs", "share_features_extractor"),
            "normalize_images",
        )
        given = {name: getattr(self, name) for name in ("observation_space", "action_space", *own)}
        return {**given, "lr_schedule": _no_rate}

    def standardize(self, obs: PyTorchObs) -> th.Tensor:
        """
        Join and standardise observations.

        :param obs: ``[n, ...]``, or a dictionary of such
        :return: ``[n, dx]``
        """
        named = obs if isinstance(obs, dict) else {"": obs}
        parts = [named[key].reshape(-1, n_numbers(space)).double() for key, space in self.vectors.items()]
        joined = th.cat(parts, dim=1)
        return ((joined - self.obs_mean) / self.obs_std).clamp(-10.0, 10.0).float()

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        Act.

        :param obs: ``[n, ...]``, or a dictionary of such
        :param deterministic: whether to take the mean before tanh
        :return: in units of the bounds, ``[n, *action_shape]``
        """
        mean, log_std = self.averaged(self.standardize(obs))
        before = mean if deterministic else mean + log_std.exp() * th.randn_like(mean)
        return th.tanh(before).reshape(-1, *self.action_space.shape)  # type: ignore[misc]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation, deterministic)

    def follow(self, share: float) -> None:
        """
        Let the Polyak average follow the policy that learns.

        :param share: how far, 1: all the way
        """
        follow(self.averaged, self.actor, share)

    def units_through(self, normalizer: VecNormalize | None, mean: th.Tensor, std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        By what the policy must read observations so that it sees standardised states.

        :param normalizer: the wrapper that shows them; None where there is none
        :param mean: of states, ``[dx]``
        :param std: likewise
        :return: mean and standard deviation of what the wrapper shows
        """
        if normalizer is None:
            return mean, std
        center, spread = mean.cpu().numpy(), std.cpu().numpy()
        seen = [self.join(normalizer.normalize_obs(self.split(center + step)))[0] for step in (0.0, spread)]
        return th.as_tensor(seen[0], device=mean.device), th.as_tensor(seen[1] - seen[0], device=mean.device)

    def set_standardization(self, mean: th.Tensor, std: th.Tensor, critic: nn.Module) -> None:
        """
        Read observations in new units; networks that read states must have been told already.

        :param mean: ``[dx]``
        :param std: ``[dx]``, positive
        :param critic: whose extractors must know as well
        """
        for module in (*self.modules(), *critic.modules()):
            if isinstance(module, MlpPolicy | ExtractedFeatures):
                module.obs_mean.copy_(mean)
                module.obs_std.copy_(std)

    def join(self, obs: Any) -> np.ndarray:
        """
        The planner's state.

        :param obs: array ``[n, ...]`` or dictionary of arrays
        :return: ``[n, dx]``
        """
        named = obs if isinstance(obs, dict) else {"": obs}
        # sizes are said, so that empty batches have them too
        parts = [np.asarray(named[key], np.float64).reshape(-1, n_numbers(space)) for key, space in self.vectors.items()]
        return np.concatenate(parts, axis=1)

    def split(self, states: np.ndarray) -> Any:
        """
        Undo ``join``.

        :param states: of one moment ``[dx]``
        :return: an observation, array or dictionary of arrays, as a batch of one
        """
        parts, start = {}, 0
        for key, space in self.vectors.items():
            size = int(np.prod(space.shape))
            parts[key] = np.asarray(states[start : start + size]).reshape(1, *space.shape)
            start += size
        return parts if isinstance(self.observation_space, spaces.Dict) else parts[""]

    def export(
        self, mean: th.Tensor, std: th.Tensor, actor: SquashedGaussian | None = None
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """
        A plain function of numpy arrays, which takes a tenth of the time for a few rows.

        :param mean: by which states are standardised, ``[dx]``
        :param std: likewise
        :param actor: None takes the policy that learns
        :return: from states ``[n, dx]`` to mean and standard deviation before tanh, ``[n, du]`` each
        """
        chosen = actor or self.actor
        layers: Weights = [
            (weight[0].detach().cpu().numpy().copy(), bias[0, 0].detach().cpu().numpy().copy(), nn.Hardswish)
            for weight, bias in chosen.network.layers()
        ]
        layers[-1] = (*layers[-1][:2], None)
        center, scale, du = mean.cpu().numpy().copy(), std.cpu().numpy().copy(), chosen.action_dim

        in_numpy = chosen.features is None and isinstance(chosen.network.activation, nn.Hardswish)

        def torch_forward(seen: np.ndarray) -> np.ndarray:
            with th.no_grad():
                hidden: np.ndarray = chosen.outputs(th.as_tensor(seen, device=self.device)).cpu().numpy()
            return hidden

        def act(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            seen = np.clip((states - center) / scale, -10.0, 10.0).astype(np.float32)
            hidden = forward(seen, layers) if in_numpy else torch_forward(seen)
            before, raw = hidden[:, :du], hidden[:, du:]
            return before, np.exp(log_std_of(np.tanh(raw), chosen.log_std_low, chosen.log_std_high))

        return act


class MultiInputPolicy(MlpPolicy):
    """
    The same for a dictionary of vectors.

    :param observation_space: dictionary of Boxes
    :param action_space: bounded Box
    :param lr_schedule: learning rate schedule
    :param features_extractor_class: of what policy and critic read
    :param kwargs: as for ``MlpPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


def _widths(net_arch: Sequence[int] | dict[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]]:
    given = net_arch if isinstance(net_arch, dict) else {} if net_arch is None else {"pi": net_arch}
    unknown = [name for name in given if name not in ("pi", "qf")]
    if unknown:
        raise ValueError(f"net_arch has the keys 'pi' and 'qf', not {unknown[0]!r}: DPI's critic is a Q-function")
    return {name: tuple(given.get(name, DEFAULT_WIDTHS)) for name in ("pi", "qf")}


def _no_rate(_: float) -> float:
    return 0.0
