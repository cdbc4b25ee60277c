"""What users of Stable-Baselines3 do with saved models and parameters, beside what ``test_save_load.py`` holds."""

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, Model, every, iterations, parameters, predictions, with_references
from dummy_envs import ITERATION, limited, vec_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl

Parameters = dict[str, dict[str, th.Tensor]]


def networks(model: Model) -> Parameters:
    """:return: of ``get_parameters`` what is no optimizer's, in copies"""
    return copy.deepcopy({name: values for name, values in model.get_parameters().items() if "optim" not in name})


# ---------------------------------------------------------------------- parameters


@with_references()
def test_parameters_are_averaged(make: Make) -> None:
    """Of two models, by ``get_parameters``; the mean of a model with itself is the model."""
    first, second = (make(seed=seed).learn(2 * ITERATION) for seed in (1, 2))
    before, one, other = predictions(first), networks(first), networks(second)

    def mean(a: Parameters, b: Parameters) -> Parameters:
        return {name: {key: 0.5 * a[name][key] + 0.5 * b[name][key] for key in a[name]} for name in a}

    first.set_parameters(mean(one, one), exact_match=False)
    np.testing.assert_allclose(predictions(first), before, atol=1e-6)
    first.set_parameters(mean(one, other), exact_match=False)
    between = predictions(first)
    assert np.isfinite(between).all() and np.abs(between - before).max() > 1e-4
    first.policy.load_state_dict(mean({"": one["policy"]}, {"": other["policy"]})[""])
    np.testing.assert_array_equal(predictions(first), between)
    assert np.isfinite(parameters(first.learn(2 * ITERATION, reset_num_timesteps=False)))


@with_references()
def test_parameters_are_perturbed(make: Make) -> None:
    """As evolution strategies do: noise on all of them, which acts, and which the old ones undo."""
    model = make().learn(2 * ITERATION)
    before, kept = predictions(model), networks(model)
    th.manual_seed(0)
    noisy = {name: {key: value + 0.1 * th.randn_like(value) for key, value in kept[name].items()} for name in kept}
    model.set_parameters(noisy, exact_match=False)
    assert np.isfinite(predictions(model)).all() and np.abs(predictions(model) - before).max() > 1e-4
    model.set_parameters(kept, exact_match=False)
    np.testing.assert_array_equal(predictions(model), before)
    model.policy.load_state_dict(noisy["policy"])
    assert np.isfinite(parameters(model.learn(2 * ITERATION, reset_num_timesteps=False)))


@with_references()
def test_parameters_that_do_not_fit_are_refused(make: Make) -> None:
    model = make()
    given = copy.deepcopy(model.get_parameters())
    for exact_match in (True, False):
        with pytest.raises(ValueError, match="not_there"):
            model.set_parameters({**given, "not_there": {}}, exact_match=exact_match)
    with pytest.raises(ValueError, match="do not match"):
        model.set_parameters(dict(list(given.items())[:-1]), exact_match=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        less = {name: values if "optim" in name else dict(list(values.items())[:-1]) for name, values in given.items()}
        model.set_parameters(less, exact_match=True)


@with_references(plans=False)
def test_some_parameters_are_set(make: Make, tmp_path: Path) -> None:
    """Random numbers for all but the last of each network; they survive saving, and learning goes on from them."""
    model = make().learn(ITERATION)
    before = networks(model)
    last = {name: next(reversed(values)) for name, values in before.items()}
    model.set_parameters(
        {
            name: {key: th.rand_like(value) for key, value in values.items() if key != last[name]}
            for name, values in before.items()
        },
        exact_match=False,
    )
    for name, values in networks(model).items():
        assert [key for key, value in values.items() if th.equal(value, before[name][key])] == [last[name]], name
    model.save(tmp_path / "model")
    loaded = make.algorithm.load(tmp_path / "model", env=make.fit(limited(12)))
    np.testing.assert_allclose(predictions(loaded), predictions(model), rtol=1e-4)
    loaded.learn(ITERATION)
    assert loaded.num_timesteps == ITERATION


# ---------------------------------------------------------------------- environments


@with_references()
def test_environments_are_set_again(make: Make, tmp_path: Path) -> None:
    """With and without a reset; steps are counted on or from zero."""
    model = make(vec_env(1, lambda: limited(12))).learn(ITERATION)
    model.set_env(make.fit(vec_env(1, lambda: limited(12))), force_reset=True)
    assert model._last_obs is None
    assert model.learn(ITERATION, reset_num_timesteps=True).num_timesteps == ITERATION
    model.set_env(model.get_env(), force_reset=False)
    assert model._last_obs is not None
    assert model.learn(ITERATION, reset_num_timesteps=False).num_timesteps == 2 * ITERATION
    model.save(tmp_path / "model")
    for env, force_reset in ((model.get_env(), False), (make.fit(limited(12)), True)):
        loaded = make.algorithm.load(tmp_path / "model", env=env, force_reset=force_reset)
        assert (loaded._last_obs is None) == force_reset
        assert loaded.learn(ITERATION, reset_num_timesteps=False).num_timesteps == 3 * ITERATION


# ---------------------------------------------------------------------- files


@with_references()
def test_what_is_saved_is_chosen(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(verbose=2)
    model.save(tmp_path / "model", exclude=["verbose"])
    assert make.algorithm.load(tmp_path / "model").verbose == 0
    model.save(tmp_path / "model", exclude=["verbose"], include=["verbose"])
    custom = {"learning_rate": 2e-5, "not_there": 1.0}
    loaded = make.algorithm.load(str(tmp_path / "model.zip"), custom_objects=custom, print_system_info=True)
    assert (loaded.verbose, loaded.learning_rate) == (2, 2e-5) and not hasattr(loaded, "not_there")
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out


@with_references(plans=False)
def test_files_may_lie_anywhere_and_are_closed(make: Make, tmp_path: Path) -> None:
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        warnings.filterwarnings("ignore", message=".*Will create it")
        model.save(tmp_path / "new" / "folder" / "model")
        with (tmp_path / "open.zip").open("wb") as file:
            model.save(file)
        with (tmp_path / "open.zip").open("rb") as file:
            loaded = make.algorithm.load(file, env=make.fit(limited(12)))
        for path in (tmp_path / "new" / "folder" / "model", str(tmp_path / "new" / "folder" / "model.zip")):
            np.testing.assert_array_equal(predictions(make.algorithm.load(path)), predictions(loaded))
        model.policy.save(tmp_path / "policy.pkl")
        np.testing.assert_array_equal(predictions(type(model.policy).load(tmp_path / "policy.pkl")), predictions(model))


@pytest.mark.slow  # torch takes ten seconds to load what compiles
@with_references()
def test_compiled_policies_are_saved(make: Make, tmp_path: Path) -> None:
    model = make()
    before, model.policy = predictions(model), th.compile(model.policy)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(predictions(make.algorithm.load(tmp_path / "model")), before)


@every(plans=False)
def test_copies_are_as_good(make: Make) -> None:
    """Of policies, by ``copy`` and ``pickle``, and of whole models that have not learned."""
    model = make().learn(ITERATION)
    for policy in (copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy))):
        np.testing.assert_array_equal(predictions(policy), predictions(model))
    copied = copy.deepcopy(make())
    assert iterations(copied.learn(ITERATION)) == 1


@with_references(plans=False)
def test_learning_rates_are_numbers_and_functions(make: Make, tmp_path: Path) -> None:
    model = make(learning_rate=lambda _: np.sin(1.0)).learn(ITERATION)
    assert type(model.lr_schedule(0.0)) is float
    model.save(tmp_path / "model")
    assert make.algorithm.load(tmp_path / "model").lr_schedule(0.0) == pytest.approx(np.sin(1.0))
    with pytest.raises((AssertionError, ValueError), match=r"must be a (float or a callable|number or a function)"):
        make(learning_rate="constant")


# ---------------------------------------------------------------------- replay buffers


@with_references(off_policy=True)
def test_replay_buffers_are_saved_and_extended(make: Make, tmp_path: Path) -> None:
    model = make().learn(2 * ITERATION)
    old, model.replay_buffer = model.replay_buffer, None
    with pytest.raises(AssertionError, match="not defined"):
        model.save_replay_buffer(tmp_path / "rows.pkl")
    model.replay_buffer = old
    model.save_replay_buffer(tmp_path / "rows.pkl")
    model.load_replay_buffer(tmp_path / "rows.pkl")
    new: Any = model.replay_buffer
    assert new is not old and new.size() == old.size() == 2 * ITERATION
    for name in ("observations", "actions", "rewards", "dones", "timeouts"):
        # what is loaded goes on elsewhere, and what searches closes its latest row at once
        last = -1 if make.searches and name in ("dones", "timeouts") else None
        np.testing.assert_array_equal(getattr(new, name)[: new.pos][:last], getattr(old, name)[: old.pos][:last])
    n = 10
    rows = [getattr(old, name)[:n] for name in ("observations", "next_observations", "actions", "rewards", "dones")]
    if make.imitates:
        with pytest.raises(ValueError, match="to imitate"):
            new.extend(*rows, [[{}]] * n)
    else:
        new.extend(*rows, [[{}]] * n)
        assert new.size() == 2 * ITERATION + n
    stream = io.BytesIO()
    model.save_replay_buffer(stream)
    stream.seek(0)
    model.load_replay_buffer(stream)
    assert iterations(model.learn(ITERATION, reset_num_timesteps=False)) > 1


@every(off_policy=True)
def test_a_refused_replay_buffer_is_not_left_in_the_model(make: Make, tmp_path: Path) -> None:
    model = make().learn(2 * ITERATION)
    own, spaces = model.replay_buffer, (model.observation_space, model.action_space)
    lean = ReplayBuffer(10, *spaces, optimize_memory_usage=True, handle_timeout_termination=False)
    blind = copy.deepcopy(own)
    blind.handle_timeout_termination = False
    for refused, error in ((lean, ValueError), (blind, ValueError), ("no buffer", AssertionError)):
        save_to_pkl(tmp_path / "refused.pkl", refused)
        with pytest.raises(error):
            model.load_replay_buffer(tmp_path / "refused.pkl")
        assert model.replay_buffer is own
    assert iterations(model.learn(ITERATION, reset_num_timesteps=False)) > 1
