"""Arguments of a kind that nobody can have meant are refused by name, before anything is sampled."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from algorithms import Make, every, every_algorithm, small_dpi, small_mdgps
from dummy_envs import ITERATION, limited
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule

from sb3_dpi import DPI
from sb3_dpi.common.choices import check_kind
from sb3_dpi.common.saved_models import READ_ELSEWHERE

WRONG: tuple[Any, ...] = (3, "zzz", [1, 2], {"zzz": 1})


def annotations(make: Make) -> dict[str, Any]:
    """:return: of the arguments that are neither numbers alone nor read elsewhere"""
    parameters = inspect.signature(make.algorithm).parameters
    return {name: each.annotation for name, each in parameters.items() if name not in (*READ_ELSEWHERE, "seed")}


@every_algorithm
def test_what_is_of_another_kind_is_refused_by_name(make: Make) -> None:
    """Without an error from deep inside, and never in silence: "False" would be true."""
    refused = set()
    for name, annotation in annotations(make).items():
        for bad in WRONG:
            try:
                check_kind(name, bad, annotation)
            except ValueError:
                refused.add(name)
                with pytest.raises(ValueError, match=rf"\b{name}\b"):
                    make.algorithm("random" if make.plans else "MlpPolicy", make.fit(make().get_env()), **{name: bad})
    assert {"policy_kwargs", "stats_window_size"} <= refused and (make.plans or "learning_rate" in refused)


@every_algorithm
def test_flags_are_true_or_false(make: Make) -> None:
    for name, annotation in annotations(make).items():
        if annotation is bool and name != "_init_setup_model":
            with pytest.raises(ValueError, match=f"{name} must be True or False, got 'False': write it without quotes"):
                make(**{name: "False"})
            make(**{name: 0})


def test_kinds() -> None:
    for sound in (0.1, 1, LinearSchedule(1.0, 0.0, 1.0), lambda progress: progress):
        check_kind("x", sound, float | Callable)
    for bad in ("0.1", None, [0.1]):
        with pytest.raises(ValueError, match="x must be a number or a function, got"):
            check_kind("x", bad, float | Callable)
    check_kind("x", 3, Any)
    check_kind("x", dict, type[dict[str, int]])
    with pytest.raises(ValueError, match="x must be a class derived from int or None, got <class 'str'>"):
        check_kind("x", str, type[int] | None)
    with pytest.raises(ValueError, match="x must be True or False, got 2"):
        check_kind("x", 2, bool)


class Own(DPI):
    """Of a user's: arguments without a kind, and one whose kind is not what it takes."""

    def __init__(self, policy, env, gamma=None, verbose=0, widths: list[int] | None = None, **kwargs: Any) -> None:  # type: ignore[no-untyped-def]
        super().__init__(policy, env, gamma=gamma, verbose=verbose, **kwargs)
        self.widths = widths


def test_classes_of_users_take_what_they_like() -> None:
    model = Own("MlpPolicy", limited(12), gamma=0.9, verbose=0, widths=(3, 4))
    assert model.gamma == 0.9 and model.widths == (3, 4)
    with pytest.raises(ValueError, match=r"stats_window_size must be a whole number, got \[1\]"):
        Own("MlpPolicy", limited(12), stats_window_size=[1])


def test_what_an_expert_or_an_entropy_must_be() -> None:
    for bad in (3, [1], object):
        with pytest.raises(ValueError, match=r"expert must be one of 'pathwise'.*, or what plans, got"):
            small_dpi(expert=bad)
    with pytest.raises(ValueError, match="target_entropy must be a number or 'auto', got 'zzz'"):
        small_dpi(target_entropy="zzz")


@every(plans=False)
def test_a_policy_of_dictionaries_has_one(make: Make) -> None:
    with pytest.raises(ValueError, match=r"MultiInputPolicy reads dictionaries and the observation is Box.*: take MlpPolicy"):
        make(policy="MultiInputPolicy")


class Numbered(gym.ObservationWrapper):  # type: ignore[type-arg]
    """
    Observes one of two numbers, or two such.

    :param start: the first
    :param several: whether they are two
    """

    def __init__(self, start: int, several: bool = False) -> None:
        super().__init__(limited(12))
        self.start, self.several = start, several
        one, two = spaces.Discrete(2, start=start), spaces.MultiDiscrete([2, 2], start=[start, start])
        self.observation_space = two if several else one

    def observation(self, observation: Any) -> Any:
        seen = self.start + (observation > 0.0).astype(int)
        return seen if self.several else seen[0]


@every(from_conditions=False, plans=False, squashes=False)
@pytest.mark.parametrize("several", [False, True])
def test_numbers_as_observations_begin_at_zero(make: Make, several: bool) -> None:
    """Others PPO ends on in the midst of training, or takes for their neighbours."""
    make(make.fit(Numbered(0, several))).learn(ITERATION)
    with pytest.raises(ValueError, match=r"Observations .*Discrete\(.*start=\[?1.* do not begin at 0: let the environment"):
        make(make.fit(Numbered(1, several)))


CONTROLLERS: list[tuple[Any, str]] = [
    ({"kind": "lqr", "stiff": 1.0}, "Unknown key 'stiff' of initial_controller 'lqr': it has gains, stiffness"),
    ({"kind": "lqr", "horizon": 3}, "Unknown key 'horizon' of initial_controller 'lqr'"),
    ({"kind": "policy", "gains": 1.0}, "Unknown key 'gains' of initial_controller 'policy': it has none"),
    ({"kind": "lqr", "dt": "0.1"}, "initial_controller 'lqr': `dt` must be a number, got '0.1'"),
    ({"kind": "lqr", "dt": [0.1]}, "`dt` must be a number"),
    ({"kind": "lqr", "gains": [1.0, 2.0]}, "`gains` must be a number, or one for each of 1 actions"),
    ({"kind": "lqr", "gains": "high"}, "`gains` must be numbers, got 'high'"),
    ({"kind": "lqr", "positions": "a"}, "`positions` must be numbers, got 'a'"),
    ({"kind": "lqr", "positions": [0.5]}, "`positions` must be whole numbers"),
    ({"kind": "lqr", "positions": [5]}, "the state has only 2 entries"),
    ({"kind": "pd", "init_var": None}, "initial_controller 'pd': `init_var` must be positive, got None"),
    ({"kind": "pd", "position_gains": [[1.0]]}, "`position_gains` must be a number, or one for each"),
    (["lqr"], "initial_controller must be a name or a dictionary, got"),
]


@pytest.mark.parametrize(("given", "message"), CONTROLLERS, ids=str)
def test_initial_controllers_are_checked_at_construction(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_mdgps(initial_controller=given)
