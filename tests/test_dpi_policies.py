"""What DPI's policy and critic read: extractors of the user's, batch normalisation and dropout, and what leaves the policy."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from dummy_envs import DictPointMass, PointMass
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_dpi import DPI
from sb3_dpi.common.features import RandomFourierExtractor
from sb3_dpi.common.standardized import StandardizedExtractor
from sb3_dpi.dpi import MlpPolicy, MultiInputPolicy
from sb3_dpi.dpi.policies import ExtractedFeatures

WARM_UP, BLOCK = 40, 20
STATES = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)


class Encoder(BaseFeaturesExtractor):
    """A layer, without what depends on the batch."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 5) -> None:
        super().__init__(observation_space, features_dim)
        assert observation_space.shape is not None
        self.layer = nn.Linear(observation_space.shape[0], features_dim)
        self.seen: list[th.Tensor] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.seen.append(observations.detach().clone())
        return th.tanh(self.layer(observations))


class NormDropout(BaseFeaturesExtractor):
    """Batch normalisation and dropout."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 6)
        assert observation_space.shape is not None
        self.norm, self.layer, self.dropout = nn.BatchNorm1d(observation_space.shape[0]), nn.Linear(2, 6), nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(th.tanh(self.layer(self.norm(observations))))


class Difference(BaseFeaturesExtractor):
    """What only makes sense where both entries have one unit."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, 1)
        self.seen: list[dict[str, th.Tensor]] = []

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        self.seen.append({key: array.detach().clone() for key, array in observations.items()})
        return observations["position"] - observations["velocity"]


class OwnPolicy(MlpPolicy):
    """A policy of the user's, with an extractor of its own."""

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        return NormDropout(self.observation_space)


def point_mass() -> gym.Env[Any, Any]:
    return TimeLimit(PointMass(), 10)


def make(policy: Any = "MlpPolicy", env: Any = None, **kwargs: Any) -> DPI:
    options: dict[str, Any] = {
        "learning_starts": WARM_UP,
        "train_freq": BLOCK,
        "batch_size": 16,
        "policy_delay": 2,
        "preset": {"kind": "corrected", "polyak": 0.1},
        "world_model": {"n_members": 2, "width": 8, "gradient_steps": 1},
        "imagination": {"horizon": 2, "n_windows": 8, "n_rollout_steps": 16},
        "update_to_data": 0.05,
        "seed": 0,
        **kwargs,
    }
    options["policy_kwargs"] = {"net_arch": [8], **options.get("policy_kwargs", {})}
    return DPI(policy, point_mass() if env is None else env, **options)


def extracting(extractor: type[BaseFeaturesExtractor], **kwargs: Any) -> DPI:
    shared = kwargs.pop("share_features_extractor", False)
    policy_kwargs = {"features_extractor_class": extractor, "share_features_extractor": shared}
    return make(policy_kwargs=policy_kwargs, **kwargs)


class Nothing(BaseCallback):
    """Stops nothing."""

    def _on_step(self) -> bool:
        return True


def collect(model: DPI) -> None:
    """A block of real steps, without learning."""
    callback = Nothing()
    callback.init_callback(model)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model._next_block(), model.replay_buffer)


def copies(module: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, th.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not th.equal(value, before[name])}


def readers(model: DPI) -> Iterator[ExtractedFeatures]:
    """The policy's, its average's, the critic's and that of its slow copy."""
    for module in (model.policy.actor, model.policy.averaged, model.critic):
        yield from (part for part in module.modules() if isinstance(part, ExtractedFeatures))


# ---------------------------------------------------------------------- extractors


@pytest.mark.parametrize(
    ("policy", "extractor", "env"),
    [("MlpPolicy", FlattenExtractor, None), ("MultiInputPolicy", CombinedExtractor, DictPointMass(("position", "velocity")))],
)
def test_extractors_that_leave_vectors_as_they_are_change_nothing(policy: str, extractor: Any, env: Any) -> None:
    plain, named = (
        make(policy, env, policy_kwargs=options).learn(WARM_UP) for options in ({}, {"features_extractor_class": extractor})
    )
    assert named.policy.features_extractor_class is extractor and plain.policy.features_extractor_class is extractor
    assert named.policy.actor.features is None and named.critic.features is None
    assert named.policy.actor.is_compiled == named.policy.actor.network.is_compiled
    assert plain.n_iterations == 1 and th.equal(plain.policy.actor.network.flat, named.policy.actor.network.flat)


def test_policy_and_critic_have_extractors_of_their_own_which_learn() -> None:
    options = {"features_extractor_class": Encoder, "features_extractor_kwargs": {"features_dim": 3}}
    model = make(policy_kwargs=options, update_to_data=0.5)
    assert model.policy.actor.network.sizes[0] == 3 and model.critic.networks.sizes[0] == 3 + 1
    extractors = [reader.extractor for reader in readers(model)]
    assert len(extractors) == len({id(extractor) for extractor in extractors}) == 4
    before = [copies(extractor) for extractor in extractors]
    model.learn(WARM_UP + BLOCK)
    assert model.n_iterations == 2
    for extractor, old in zip(extractors, before, strict=True):
        assert changed(extractor, old) == {"layer.weight", "layer.bias"}
    learner, average, critic, slow = (extractor.layer.weight for extractor in extractors)  # type: ignore[union-attr]
    assert not th.equal(learner, average) and not th.equal(critic, slow) and not th.equal(learner, critic)


@pytest.mark.parametrize("expert", ["pathwise", "lqr", "mppi", "icem"])
@pytest.mark.parametrize("critic", ["q", "returns"])
def test_every_expert_and_critic_reads_features(expert: str, critic: str) -> None:
    options = {} if expert == "pathwise" else {"imitation_steps": 2}
    model = extracting(NormDropout, expert={"kind": expert, **options}, critic={"kind": critic})
    before = copies(model.policy)
    model.learn(WARM_UP)
    assert {"actor.features.extractor.layer.weight", "actor.network.flat"} <= changed(model.policy, before)
    assert all(bool(th.isfinite(value).all()) for value in model.policy.state_dict().values())


def test_gradients_of_features_are_those_of_differences() -> None:
    model = extracting(Encoder).learn(WARM_UP)
    windows, _ = model.imagine(1)
    plan, actor = model.improve_expert(windows[0]), model.policy.actor
    direction = plan.gradient(actor, 0.1, np.random.default_rng(0)).direction[0]
    start = nn.utils.parameters_to_vector(actor.learned).detach()
    step = 1e-2 * direction / direction.norm()
    found = []
    for sign in (1.0, -1.0):
        moved = copy.deepcopy(actor)
        nn.utils.vector_to_parameters(start + sign * step, moved.learned)
        found.append(plan.gradient(moved, 0.1, np.random.default_rng(0)).objective)
    assert float(step @ direction) == pytest.approx(0.5 * (found[0] - found[1]), rel=0.05)
    # the extractor has its part in it
    n = sum(parameter.numel() for parameter in actor.features.parameters())  # type: ignore[union-attr]
    assert float(direction[:n].norm()) > 1e-6 and len(direction) == n + actor.network.flat.numel()


def test_an_extractor_reads_observations_in_their_own_units() -> None:
    env = DictPointMass(("position", "velocity"))
    model = make("MultiInputPolicy", env, policy_kwargs={"features_extractor_class": Difference}).learn(WARM_UP)
    for reader in readers(model):
        assert isinstance(reader.extractor, Difference)
        reader.extractor.seen.clear()
    obs = {"position": np.array([[0.3], [-0.2]], np.float32), "velocity": np.array([[0.1], [0.4]], np.float32)}
    model.predict(obs)
    average = model.policy.averaged.features
    assert isinstance(average, ExtractedFeatures) and isinstance(average.extractor, Difference)
    (seen,) = average.extractor.seen
    for key, array in obs.items():
        np.testing.assert_allclose(seen[key].numpy(), array, atol=1e-6)
    # the critic reads the same of the same states
    states = model.ensemble.standardize(model.policy.join(obs))
    expected = obs["position"] - obs["velocity"]
    for slow in (False, True):
        np.testing.assert_allclose(model.critic.read(states, slow=slow).detach().numpy(), expected, atol=1e-6)


def test_functions_stay_where_units_change() -> None:
    model = extracting(Encoder).learn(WARM_UP)
    actor, critic, ensemble = model.policy.actor, model.critic, model.ensemble
    action = th.zeros(len(STATES), 1)

    def values() -> list[np.ndarray]:
        states = ensemble.standardize(STATES.astype(np.float64))
        with th.no_grad():
            return [*(array.numpy() for array in actor(states)), (critic(states, action) * critic.unit).numpy()]

    before, old = values(), ensemble.state_mean.clone()
    collect(model)
    model._follow_units()
    assert not th.equal(ensemble.state_mean, old)
    for one, two in zip(before, values(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_beneath_vec_normalize_an_extractor_reads_what_the_wrapper_shows() -> None:
    env = VecNormalize(DummyVecEnv([point_mass]))
    model = extracting(Encoder, env=env).learn(WARM_UP)
    reader = model.policy.averaged.features
    assert isinstance(reader, ExtractedFeatures) and isinstance(reader.extractor, Encoder)
    reader.extractor.seen.clear()
    shown = env.normalize_obs(STATES[:4])
    model.predict(shown)
    np.testing.assert_allclose(reader.extractor.seen[-1].numpy(), shown, atol=1e-4)


@pytest.mark.parametrize("critic", ["q", "returns"])
def test_a_shared_extractor_is_taught_by_the_policy_alone(critic: str) -> None:
    model = extracting(NormDropout, share_features_extractor=True, critic={"kind": critic}).learn(WARM_UP)
    assert model.critic.features is model.policy.actor.features and model.critic.slow_features is not None
    assert len(model.critic.optimizer.param_groups[0]["params"]) == 1
    windows, data = model.imagine(2)
    before, slow = copies(model.policy), copies(model.critic.slow_features)
    networks = model.critic.networks.flat.detach().clone()
    model.evaluate(data, 3, 16)
    assert not changed(model.policy, before) and not th.equal(model.critic.networks.flat, networks)
    # nor by way of the values that close a plan, whose derivative by the states counts
    states, action = windows[0].states[0].clone().requires_grad_(True), th.zeros(len(windows[0].states[0]), 1)
    through = [states, *model.policy.actor.features.parameters()]  # type: ignore[union-attr]
    by_states, *by_features = th.autograd.grad(model.critic(states, action).sum(), through, allow_unused=True)
    assert float(by_states.norm()) > 0.0 and all(slope is None for slope in by_features)
    model.imitate(model.improve_expert(windows[0]))
    assert "actor.features.extractor.layer.weight" in changed(model.policy, before)
    model.evaluate(data, 1, 16)
    assert "extractor.layer.weight" in changed(model.critic.slow_features, slow)


def test_image_extractors_are_refused_with_what_to_do() -> None:
    with pytest.raises(
        ValueError, match="NatureCNN reads images, and DPI learns a model of vectors: leave features_extractor_class"
    ):
        extracting(NatureCNN)


# ---------------------------------------------------------------------- batch normalisation and dropout


def statistics(model: DPI) -> list[th.Tensor]:
    return [part.running_mean.clone() for part in _norms(model)]  # type: ignore[union-attr]


def _norms(model: DPI) -> list[nn.BatchNorm1d]:
    return [part for reader in readers(model) for part in reader.modules() if isinstance(part, nn.BatchNorm1d)]


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnPolicy])
def test_statistics_of_batches_change_in_updates_and_nowhere_else(policy: Any) -> None:
    options = {} if policy is OwnPolicy else {"features_extractor_class": NormDropout}
    model = make(policy, policy_kwargs=options)
    assert len(_norms(model)) == 4
    fresh = statistics(model)
    model.learn(WARM_UP)
    assert all(not th.equal(one, two) for one, two in zip(fresh, statistics(model), strict=True))
    learner, average, critic, slow = _norms(model)
    for one, two in ((learner, average), (critic, slow)):
        assert all(th.equal(kept, counted) for kept, counted in zip(one.buffers(), two.buffers(), strict=True))
    before = copies(model.policy), copies(model.critic)
    collect(model)
    model.predict(STATES, deterministic=True)
    windows, data = model.imagine(2)
    model.improve_expert(windows[0])
    assert not changed(model.policy, before[0]) and not changed(model.critic, before[1])
    model.evaluate(data, 1, 16)
    assert not changed(model.policy, before[0])
    assert {f"{name}.extractor.norm.running_mean" for name in ("features", "slow_features")} <= changed(
        model.critic, before[1]
    )


@pytest.mark.parametrize("expert", ["pathwise", "lqr", "mppi", "icem"])
def test_the_policy_is_in_train_mode_for_its_update_and_in_eval_mode_elsewhere(expert: str) -> None:
    model = extracting(NormDropout, expert=expert).learn(WARM_UP)
    modes: list[tuple[str, bool]] = []
    now = "elsewhere"
    features = model.policy.actor.features
    assert features is not None
    features.register_forward_hook(lambda *_: modes.append((now, features.training)))
    imitate = model.imitate

    def watched(plan: Any) -> Any:
        nonlocal now
        now = "imitation"
        gradient = imitate(plan)
        now = "elsewhere"
        return gradient

    model.imitate = watched  # type: ignore[method-assign]
    model.learn(2 * BLOCK, reset_num_timesteps=False)
    assert set(modes) == {("imitation", True), ("elsewhere", False)}
    assert not model.policy.averaged.training and not model.critic.training


def test_what_acts_has_no_dropout_and_does_not_look_at_the_batch() -> None:
    model = extracting(NormDropout).learn(WARM_UP)
    model.policy.set_training_mode(True)
    together, _ = model.predict(STATES, deterministic=True)
    alone = np.concatenate([model.predict(row[None], deterministic=True)[0] for row in STATES])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not model.policy.training and together.std() > 0.0


def test_the_policy_that_explores_is_the_learner_in_eval_mode() -> None:
    model = extracting(NormDropout).learn(WARM_UP)
    model.policy.set_training_mode(False)
    act = model.policy.export(model.ensemble.state_mean, model.ensemble.state_std)
    mean, std = act(STATES.astype(np.float64))
    with th.no_grad():
        expected, log_std = model.policy.actor(model.ensemble.standardize(STATES))
    np.testing.assert_allclose(mean, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(std, log_std.exp().numpy(), atol=1e-5)


# ---------------------------------------------------------------------- saved, exported


@pytest.mark.parametrize("shared", [False, True])
def test_extractors_and_their_statistics_survive_saving(tmp_path: Path, shared: bool) -> None:
    model = extracting(NormDropout, share_features_extractor=shared).learn(WARM_UP)
    model.save(tmp_path / "model")
    loaded = DPI.load(tmp_path / "model", env=model.env)
    for one, two in ((model.policy, loaded.policy), (model.critic, loaded.critic)):
        assert not changed(two, copies(one))
    assert (loaded.critic.features is loaded.policy.actor.features) == shared
    np.testing.assert_array_equal(model.predict(STATES, deterministic=True)[0], loaded.predict(STATES, deterministic=True)[0])
    loaded.load_replay_buffer(_kept(model, tmp_path))
    loaded.learn(BLOCK, reset_num_timesteps=False)
    assert loaded.n_iterations == 2 and changed(loaded.policy, copies(model.policy))


def _kept(model: DPI, folder: Path) -> Path:
    model.save_replay_buffer(folder / "rows.pkl")
    return folder / "rows.pkl"


def test_a_policy_saved_alone_keeps_its_extractor(tmp_path: Path) -> None:
    model = extracting(NormDropout).learn(WARM_UP)
    model.policy.save(str(tmp_path / "policy"))
    loaded = MlpPolicy.load(str(tmp_path / "policy"))
    np.testing.assert_array_equal(model.predict(STATES, deterministic=True)[0], loaded.predict(STATES, deterministic=True)[0])


@pytest.mark.parametrize("kind", ["plain", "extractor", "dict"])
def test_no_bool_in_a_state_dict(kind: str) -> None:
    env = DictPointMass(("position", "velocity")) if kind == "dict" else None
    policy = MultiInputPolicy if kind == "dict" else MlpPolicy
    model = make(policy, env, policy_kwargs={"features_extractor_class": NormDropout} if kind == "extractor" else {})
    modules: list[nn.Module] = [model.policy, model.ensemble, model.critic]
    space = spaces.Box(-1.0, 1.0, (3,))
    modules += [StandardizedExtractor(space), RandomFourierExtractor(space)]
    kept = {name: value.dtype for module in modules for name, value in module.state_dict().items()}
    assert kept and not [name for name, dtype in kept.items() if dtype == th.bool]


class _Acting(nn.Module):
    """What is exported."""

    def __init__(self, policy: MlpPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Any) -> th.Tensor:
        return self.policy._predict(observations, deterministic=True)


@pytest.mark.parametrize("kind", ["plain", "extractor", "dict"])
@pytest.mark.parametrize("way", ["trace", "export"])
def test_exported_policies_take_any_batch_size(kind: str, way: str) -> None:
    env = DictPointMass(("position", "velocity")) if kind == "dict" else None
    policy_kwargs = {"features_extractor_class": NormDropout} if kind == "extractor" else {}
    model = make("MultiInputPolicy" if kind == "dict" else "MlpPolicy", env, policy_kwargs=policy_kwargs).learn(
        WARM_UP + BLOCK
    )
    model.policy.set_training_mode(False)
    acting = _Acting(model.policy)

    def batch(n: int) -> Any:
        rows = th.as_tensor(STATES[:n])
        return {"position": rows[:, :1], "velocity": rows[:, 1:]} if kind == "dict" else rows

    with th.no_grad():
        if way == "trace":
            exported: Any = th.jit.trace(acting, (batch(3),), check_trace=False)
        else:
            n = th.export.Dim("n")
            shapes = {"position": {0: n}, "velocity": {0: n}} if kind == "dict" else {0: n}
            exported = th.export.export(acting, (batch(3),), dynamic_shapes=(shapes,)).module()
        for n_rows in (1, 2, 3, 17):
            th.testing.assert_close(exported(batch(n_rows)), acting(batch(n_rows)))


def test_observations_are_cut_at_ten_standard_deviations() -> None:
    policy = make().policy
    mean, std = th.tensor([1.0, -2.0], dtype=th.float64), th.tensor([0.5, 4.0], dtype=th.float64)
    policy.set_standardization(mean, std, nn.Identity())
    seen = (mean + std * th.tensor([[10.5, -10.5], [-10.5, 10.5], [9.5, -9.5], [0.0, 1.0]])).float()
    expected = th.tensor([[10.0, -10.0], [-10.0, 10.0], [9.5, -9.5], [0.0, 1.0]])
    th.testing.assert_close(policy.standardize(seen), expected)
