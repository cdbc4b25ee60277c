"""The progress that schedules are told, beyond the end too: the last block is completed."""

import numpy as np
import pytest
from algorithms import Make, Model, every, every_algorithm, logged, parameters, small_dagger, small_mdgps
from dummy_envs import ITERATION

BEYOND = ITERATION + ITERATION // 4
"""Asked for, of the two iterations that are taken"""


def beyond(make: Make, **options: object) -> Model:
    """:return: a model that has taken more steps than it was asked for"""
    model = make(**options).learn(BEYOND)
    assert model.num_timesteps > BEYOND
    return model


@every_algorithm
def test_progress_falls_from_one_to_zero(make: Make) -> None:
    assert beyond(make)._current_progress_remaining == 0.0


@every(plans=False)
def test_no_rate_is_below_zero(make: Make) -> None:
    """As RL Zoo's ``lin_1e-3`` would be."""
    rates: list[float] = []

    def rate(progress: float) -> float:
        rates.append(1e-3 * progress)
        return rates[-1]

    model = beyond(make, learning_rate=rate)
    assert rates[0] == 1e-3 and min(rates) == rates[-1] == 0.0
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0 and np.isfinite(parameters(model))


def test_a_step_size_keeps_its_last_value() -> None:
    model = small_mdgps(kl_step=lambda progress: 0.1 + 0.2 * progress).learn(1)
    assert logged(model, "trajopt/kl_step") == pytest.approx(0.1)


def test_the_share_of_the_expert_ends_at_none() -> None:
    """``beta``, a function that says no share below zero."""
    model = small_dagger(beta=lambda progress: progress).learn(BEYOND)
    assert model.num_timesteps > BEYOND and model.share_of_expert() == 0.0
