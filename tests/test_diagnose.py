"""A look inside from beginning to end: every algorithm, the page, the command, the callback."""

import os
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from algorithms import (
    ALGORITHMS,
    CHAPTERS,
    Make,
    every,
    parameters,
    small_dpi,
    small_mdgps,
    small_ppo,
    small_sac,
    with_references,
)
from dummy_envs import ITERATION, POINT_MASS_ID, DictPointMass, ImagePointMass, PointMass, limited
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dpi.common.displays import DISPLAYS
from sb3_dpi.diagnose import DiagnoseCallback, DiagnoseError, as_subject, diagnose, pictures
from sb3_dpi.diagnose.__main__ import main
from sb3_dpi.diagnose.chapters import WORDS
from sb3_dpi.diagnose.episodes import Stage, policy_act
from sb3_dpi.diagnose.film import FRAMES, HEADLESS, film
from sb3_dpi.diagnose.names import state_names


class Drawn(PointMass):
    """A point mass that can be seen."""

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        return np.full((40, 600, 3), 10 * self.t, np.uint8)


def draw_less(monkeypatch: pytest.MonkeyPatch, *drawn: pictures.Draw) -> None:
    """Pictures take most of the time of a page: these alone are drawn, small, and once for light and dark."""

    def both(draw: pictures.Draw, tables: Any) -> tuple[bytes, bytes]:
        png = pictures._png(draw, tables, pictures.DARK, pictures.DARK_COLORS) if draw in drawn else b"picture"
        return png, png

    monkeypatch.setattr(pictures, "DPI", 30)
    monkeypatch.setattr(pictures, "both", both)


@with_references(plans=False)
def test_a_page_of_every_algorithm(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"DPI": [words.draw for words in WORDS], "MDGPS": [pictures.draw_conditions, pictures.draw_ahead]}
    draw_less(monkeypatch, *own.get(str(make), []))
    model = make().learn(ITERATION * 2)
    before, numbers, state = parameters(model), np.random.get_state()[1].copy(), th.get_rng_state()
    task = make.fit(POINT_MASS_ID)
    found = diagnose(model, task, tmp_path / "out", n_episodes=2)
    assert set(found.tables) == make.chapters
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["index.html", *(f"{name}.csv" for name in found.tables)]
    )
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    shown = [words for words in WORDS if words.table in found.tables]
    assert all(words.title.replace("'", "&#39;") in page and f'id="{words.table}"' in page for words in shown)
    assert page.count("<img ") == len(shown) and page.count("data:image/png;base64,") == 2 * len(shown)
    assert not re.search(r'(src|href|srcset)="(?!data:|#|\w+\.csv)', page)  # nothing is fetched
    assert "made without pictures" in page or "could not be drawn" in page
    assert all(np.isfinite(key.value) for key in found.keys) and len(found.keys) >= 2
    assert parameters(model) == before
    assert np.array_equal(np.random.get_state()[1], numbers) and th.equal(th.get_rng_state(), state)
    if make in ALGORITHMS:  # the file of another does not say whose it is
        model.save(tmp_path / "model")
        again = {key.name: key.value for key in diagnose(tmp_path / "model.zip", task, n_episodes=2).keys}
        assert again == pytest.approx({key.name: key.value for key in found.keys}, rel=1e-4)


@every(plans=True)
def test_what_plans_has_no_policy_to_look_into(make: Make, tmp_path: Path) -> None:
    """From a model as from its file, and before anything is learned."""
    model = make()
    model.save(tmp_path / "model.zip")
    for given in (model, model.policy, tmp_path / "model.zip"):
        with pytest.raises(DiagnoseError, match="no policy to look into: it plans"):
            diagnose(given, POINT_MASS_ID, n_episodes=1)


class Written(KVWriter):
    """What was logged."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.values.append(dict(key_values))

    def close(self) -> None:
        pass


@every(plans=False)
def test_training_goes_on_as_without_the_callback(make: Make) -> None:
    written, models = Written(), []
    callbacks: list[BaseCallback | None] = [None, DiagnoseCallback(make.fit(POINT_MASS_ID), every=ITERATION + 5, n_episodes=1)]
    for callback in callbacks:
        models.append(make())  # which seeds what draws from the numbers of all
        models[-1].set_logger(Logger(None, [written]))
        models[-1].learn(3 * ITERATION, callback=callback, log_interval=1)
    models[1].logger.dump()
    assert parameters(models[0]) == parameters(models[1])
    assert models[0].num_timesteps == models[1].num_timesteps
    logged = {name for values in written.values for name in values if name.startswith("diagnose/")}
    assert "diagnose/return" in logged and ("diagnose/saturation" in logged) == ("actions" in make.chapters)
    assert ("diagnose/error_1" in logged) == ("prediction" in make.chapters)


@every(plans=False)
def test_originals_behind_vec_normalize_and_dictionaries(make: Make) -> None:
    """Models are of the environment's units, and the names are those of the keys."""

    def env() -> gym.Env:
        return make.fit(gym.wrappers.TimeLimit(DictPointMass(("position", "velocity")), 10))

    normalized = VecNormalize(DummyVecEnv([env]), clip_obs=5.0)
    model = make(normalized, "MultiInputPolicy").learn(ITERATION * 2)
    count = normalized.obs_rms["position"].count
    found = diagnose(model, env, n_episodes=2)
    assert list(found.names) == ["position", "velocity"] and normalized.obs_rms["position"].count == count
    if "prediction" in found.tables:
        assert list(found.tables["prediction"]["dimension"][:2]) == ["position", "velocity"]
    stage = Stage(as_subject(model), env)
    episode = stage.play(policy_act(as_subject(model), True), seed=3)
    env_alone = env()
    first, _ = env_alone.reset(seed=3)
    np.testing.assert_allclose(episode.states[0], [first["position"][0], first["velocity"][0]])
    assert isinstance(episode.seen, dict) and len(episode) == 10 and not episode.terminated
    mean, var = (getattr(normalized.obs_rms["position"], name) for name in ("mean", "var"))
    shown = np.clip((episode.states[-1, :1] - mean) / np.sqrt(var + normalized.epsilon), -5.0, 5.0)
    np.testing.assert_allclose(episode.seen["position"][-1], shown, rtol=1e-5)
    assert np.isclose(episode.rewards[0], -(first["position"][0] ** 2 + first["velocity"][0] ** 2), atol=0.11)


def test_units_of_actions() -> None:
    """Fractions of the bounds inside, the environment's units outside."""
    env = limited(12, low=-4.0, high=1.0)
    subject = as_subject(small_ppo(env))
    np.testing.assert_allclose(subject.to_units(np.array([[-4.0], [-1.5], [1.0]])), [[-1.0], [0.0], [1.0]])
    np.testing.assert_allclose(subject.to_env(np.array([[-2.0], [0.0], [0.5]])), [[-4.0], [-1.5], [-0.25]])


def test_film() -> None:
    subject = as_subject(small_ppo(limited(12)))
    taken = film(subject, lambda: gym.wrappers.TimeLimit(Drawn(), 12), 0, 12)
    assert len(taken.frames) == FRAMES and [step for step, _ in taken.frames][:2] == [0, 1] and taken.frames[-1][0] == 11
    assert all(frame.shape == (13, 200, 3) and (frame == 10 * step).all() for step, frame in taken.frames)
    assert "made without pictures" in film(subject, lambda: Drawn(None), 0, 12).note
    assert "'rgb_array' is not among" in film(subject, NoPictures, 0, 12).note


class NoPictures(PointMass):
    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012


def test_without_a_display_sdl_says_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What a command prints first is its own."""
    pytest.importorskip("pygame")
    for name in (*DISPLAYS, "SDL_VIDEODRIVER", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    taken = film(as_subject(small_ppo("Pendulum-v1")), "Pendulum-v1", 0, 10)
    assert len(taken.frames) == FRAMES and capfd.readouterr().err == ""
    assert "SDL_VIDEODRIVER" not in os.environ


def test_mujoco_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    assert film(as_subject(small_ppo("InvertedPendulum-v5")), "InvertedPendulum-v5", 0, 5).note == HEADLESS


@pytest.mark.parametrize(
    "env_id, names",
    [
        ("Pendulum-v1", ["cos angle", "sin angle", "velocity"]),
        ("InvertedPendulum-v5", ["slider", "hinge", "slider velocity", "hinge velocity"]),
        (POINT_MASS_ID, ["x0", "x1"]),
    ],
)
def test_names(env_id: str, names: list[str]) -> None:
    env = gym.make(env_id)
    assert state_names(env, env.observation_space, len(names)) == names
    env.unwrapped.observation_names = [f"own {i}" for i in range(len(names))]
    assert state_names(env, env.observation_space, len(names))[0] == "own 0"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy alone of a file of Stable-Baselines3; errors are one line."""
    draw_less(monkeypatch)
    small_ppo().save(tmp_path / "ppo")
    assert main([str(tmp_path / "ppo"), "--env", POINT_MASS_ID, "--episodes", "2", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^Left out: Critic and return\. .*PPO\.load.*give it to diagnose\(\)\.$", out, re.M)
    assert "Left out: Model and expert. This policy has no model of the system.\n" in out
    assert "Left out: Film strip. This environment" in out
    assert "Return of the policy" in out and (tmp_path / "ppo_diagnosis" / "actions.csv").is_file()
    assert "no model of the system" in (tmp_path / "ppo_diagnosis" / "index.html").read_text(encoding="utf-8")
    (tmp_path / "other.zip").write_text("nothing")
    for file, env_id, words in (
        ("ppo.zip", "Pendulum-v1", "does not fit"),
        ("ppo.zip", "Nowhere-v0", "cannot be made"),
        ("gone.zip", POINT_MASS_ID, "There is no file"),
        ("other.zip", POINT_MASS_ID, "is no saved model"),
    ):
        assert main([str(tmp_path / file), "--env", env_id]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with pytest.raises(DiagnoseError, match="DummyVecEnv is no environment"):
        diagnose(tmp_path / "ppo.zip", DummyVecEnv([PointMass]))  # type: ignore[arg-type]
    with pytest.raises(DiagnoseError, match="n_episodes"):
        diagnose(tmp_path / "ppo.zip", POINT_MASS_ID, n_episodes=0)


def test_why_a_critic_is_left_out(tmp_path: Path) -> None:
    """A policy alone, one with Q-functions, one that has none; where there is a critic nothing is said of it."""
    model = small_sac()
    model.save(tmp_path / "sac")
    for given, words in (
        (small_ppo().policy, "in Python load the model"),
        (tmp_path / "sac", "Q-functions are compared with returns for DPI alone"),
        (model, "Q-functions are compared with returns for DPI alone"),
        (small_mdgps(), "no critic here that judges returns"),
        (small_dpi(), "which has not learned yet"),
    ):
        assert words in diagnose(given, POINT_MASS_ID, n_episodes=1).notes["critic"]
    assert "critic" not in diagnose(small_ppo(), POINT_MASS_ID, n_episodes=1).notes


def statistics(path: Path, env: type[gym.Env] = PointMass) -> VecNormalize:
    """:return: those in a file, of a mean far away"""
    path.parent.mkdir(exist_ok=True)
    normalizer = VecNormalize(DummyVecEnv([env]))
    for one in normalizer.obs_rms.values() if isinstance(normalizer.obs_rms, dict) else [normalizer.obs_rms]:
        one.mean[...] = 5.0
    normalizer.save(str(path))
    return normalizer


def test_statistics_of_the_command(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of RL Zoo, those that are named, none; where two fit it asks."""
    draw_less(monkeypatch)
    model = small_ppo()
    model.save(tmp_path / "point_0.5.zip")
    command = [str(tmp_path / "point_0.5"), "--env", POINT_MASS_ID, "--episodes", "1"]  # as load takes it
    inside, beside = tmp_path / "point_0.5" / "vecnormalize.pkl", tmp_path / "vecnormalize.pkl"
    normalizer = statistics(inside)

    def returned() -> float:
        return float(pd.read_csv(tmp_path / "point_0.5_diagnosis" / "episodes.csv")["return"][0])

    with_them = diagnose(model, POINT_MASS_ID, n_episodes=1, vec_normalize=normalizer).tables["episodes"]["return"][0]
    without = diagnose(model, POINT_MASS_ID, n_episodes=1).tables["episodes"]["return"][0]
    assert abs(with_them - without) > 1e-3
    assert main(command) == 0 and returned() == pytest.approx(with_them)
    assert main([*command, "--no-vec-normalize"]) == 0 and returned() == pytest.approx(without)
    statistics(beside)
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(inside) in error and str(beside) in error and "--no-vec-normalize" in error
    assert main([*command, "--vec-normalize", str(inside)]) == 0 and returned() == pytest.approx(with_them)


def test_statistics_that_do_not_fit(tmp_path: Path, capsys: Any) -> None:
    model = small_ppo()
    model.save(tmp_path / "ppo")
    given = statistics(tmp_path / "others.pkl", DictPointMass)
    with pytest.raises(DiagnoseError, match=r"they are of 'position' \(1,\), 'state' \(2,\), it observes shape \(2,\)"):
        diagnose(model, POINT_MASS_ID, vec_normalize=given)
    assert main([str(tmp_path / "ppo.zip"), "--env", POINT_MASS_ID, "--vec-normalize", str(tmp_path / "others.pkl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The statistics of VecNormalize do not fit the model") and error.count("\n") == 1
    seeing_both = small_ppo(gym.wrappers.TimeLimit(DictPointMass(), 5), "MultiInputPolicy")
    with pytest.raises(DiagnoseError, match="does not fit this environment"):
        diagnose(seeing_both, POINT_MASS_ID, vec_normalize=given)


def test_images_have_a_policy_and_no_planner() -> None:
    def env() -> gym.Env:
        return gym.wrappers.TimeLimit(ImagePointMass(), 5)

    options = {"features_extractor_kwargs": {"features_dim": 8}}
    found = diagnose(small_ppo(env(), "CnnPolicy", policy_kwargs=options), env, n_episodes=1)
    assert set(found.tables) == CHAPTERS | {"critic"}
