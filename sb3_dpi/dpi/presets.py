"""The two presets of DPI, and which of them a task calls for.

Imagination that is corrected on-policy adds what a model misses to what it predicts for other actions. Pendulums balance with
it and hardly without; there short blocks, quick critics and many beginnings help as well. Where falls end episodes, speed pays
and the model misses much, as where feet meet the ground, policies stay at the first leap they find that way. There the model
is left free; long blocks, slow critics that see far, whole episodes and noise that lasts and is strong do better
(``docs/theory/presets.md`` has the evidence). A preset sets numbers, never shapes.
"""

import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import Schedule

from sb3_dpi.common.choices import as_schedule, check_choice, numbers_of
from sb3_dpi.dpi.constants import ENOUGH_FALLS, ENOUGH_R2, FIRST_MODEL_STEPS, MEASURED, SPREAD_OF_REWARDS
from sb3_dpi.world_model.ensemble import MODEL_BATCH, DivergedError, Ensemble
from sb3_dpi.world_model.imagination import check_starts
from sb3_dpi.world_model.types import Memory, take_without_outliers


@dataclass(frozen=True)
class Preset:
    """Numbers that are left to DPI.

    :param kind: the name of the preset
    :param short_warm_up: whether random steps end once enough episodes have ended
    :param train_freq: real steps of all environments between updates
    :param tau: the soft update coefficient of the critic's slow copies; usual: .005 to .02
    :param gamma: discount factor, where no time limit asks for less; usual: .95 to .999
    :param on_policy_correction: of imagination
    :param rollout_length: steps of the model rollouts for the critic; usual: 1 to 32
    :param model_noise: share of what a member missed on another real step that is added to each imagined one; 0 or 1
    :param imagined_starts: share of windows that begin at states of model rollouts; 0 or 1
    :param value_expansion: targets of ``rollout_length`` steps of real states, from which the critic learns in place of all
        steps of model rollouts; 0, or 8,000 to 32,000
    :param early_reset: median of the steps after which an episode is left, 0: never; usual: 100 to 500
    :param target_kl: KL(policy before || after) of the updates between two blocks, nats, that the policy's learning rate aims
        at: after less than half of it the rate rises, after more than double it falls, within a tenth and five times
        ``learning_rate``. 0 leaves the rate alone; usual: .3 to 3
    :param polyak: by how much the policy that is deployed follows the one that learns at each of its steps; 1 deploys the one
        that learns; usual: .001 to .01
    :param noise_correlation: of the exploration noise of one step with that of the next; usual: 0 to .9
    :param noise_scale: what multiplies the policy's standard deviation in real steps; a number, ``"lin_1.0"``, which falls to
        zero, or a function of the progress remaining; 0: no noise; usual: .3 to 2
    :param lr_decay_after: updates of the critic after which its learning rate falls, as one over the root of their number, to
        a tenth at the least; 0: never; usual: 1e4 to 1e5
    :param max_grad_norm: the maximum value for the gradient clipping of the policy
    :raises ValueError: if a number is out of range
    """

    kind: str
    short_warm_up: bool
    train_freq: int
    tau: float
    gamma: float
    on_policy_correction: bool
    rollout_length: int
    early_reset: int
    target_kl: float
    polyak: float
    noise_correlation: float
    noise_scale: float | str | Schedule
    lr_decay_after: int
    max_grad_norm: float = 1.0
    model_noise: float = 0.0
    imagined_starts: float = 0.0
    value_expansion: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < 1.0:
            raise ValueError(f"gamma must be at least 0 and below 1, got {self.gamma}")
        if not 0.0 <= self.noise_correlation < 1.0:
            raise ValueError(f"noise_correlation must be at least 0 and below 1, got {self.noise_correlation}")
        check_starts("", self.model_noise, self.imagined_starts, self.value_expansion)
        for name in ("tau", "polyak"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        for name in ("train_freq", "rollout_length"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("early_reset", "target_kl", "lr_decay_after"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.max_grad_norm > 0.0:
            raise ValueError(f"max_grad_norm must be above 0, got {self.max_grad_norm}")
        if not as_schedule("noise_scale", self.noise_scale)(1.0) >= 0.0:
            raise ValueError(f"noise_scale must be at least 0, got {self.noise_scale}")


PRESETS = {
    "corrected": Preset(
        kind="corrected",
        short_warm_up=True,
        train_freq=125,
        tau=0.02,
        gamma=0.99,
        on_policy_correction=True,
        rollout_length=1,
        early_reset=125,
        target_kl=1.0,
        polyak=0.004,
        noise_correlation=0.0,
        noise_scale=1.0,
        lr_decay_after=0,
    ),
    "free": Preset(
        kind="free",
        short_warm_up=False,
        train_freq=250,
        tau=0.005,
        gamma=0.995,
        on_policy_correction=False,
        rollout_length=10,
        early_reset=0,
        target_kl=0.0,
        polyak=0.001,
        noise_correlation=0.8,
        noise_scale=2.0,
        lr_decay_after=20_000,
    ),
}
UNCORRECTED = "model_noise", "imagined_starts"
"""Numbers of imagination without a correction."""
FIRST = "corrected"
"""Whose numbers hold in the warm-up."""


def parse_preset(preset: str | dict[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """
    Split a preset into its name and what stands in place of its numbers.

    :param preset: None, a name, or a dictionary of numbers that may name it under ``"kind"``
    :return: name, None where DPI chooses, and numbers
    :raises ValueError: if the name or a number's name is unknown, or a number is none
    """
    options = dict(preset) if isinstance(preset, dict) else {"kind": preset}
    kind = options.pop("kind", None)
    if kind is not None:
        check_choice("preset", kind, tuple(PRESETS))
    known = [field.name for field in fields(Preset) if field.name != "kind"]
    for name in options:
        if name not in known:
            raise ValueError(f"preset: {name!r} is unknown; its numbers are {', '.join(known)}")
    return kind, numbers_of("preset", Preset, {name: value for name, value in options.items() if value is not None})


def resolve(kind: str, *given: dict[str, Any]) -> Preset:
    """
    Let what was given stand in place of a preset's own numbers.

    :param kind: the preset's name
    :param given: numbers by name, later ones before earlier ones; None leaves the preset's own
    :return: what to learn with; a correction that is given turns noise and imagined starts off, and these it
    :raises ValueError: if a number is out of range, or both are given
    """
    numbers = {name: value for options in given for name, value in options.items() if value is not None}
    asked = any(numbers.get(name) for name in UNCORRECTED)
    if asked and numbers.get("on_policy_correction"):
        raise ValueError(
            f"on_policy_correction is for windows from real steps alone: leave out {' and '.join(UNCORRECTED)}, or it"
        )
    if asked:
        numbers["on_policy_correction"] = False
    elif numbers.get("on_policy_correction"):
        numbers |= dict.fromkeys(UNCORRECTED, 0.0)
    return replace(PRESETS[kind], **numbers)


def measure_r2(ensemble: Ensemble, memory: Memory) -> float:
    """
    How much of the latest steps a model tells after it has learned from those before.

    :param ensemble: a model that has learned nothing yet, and stays so
    :param memory: random steps
    :return: R^2 of the changes of state in the latest fifth of the steps, the median over the state's dimensions
    """
    learner, rows = copy.deepcopy(ensemble), memory.newest(MEASURED)
    latest = np.isin(rows, memory.newest(len(rows) // 5))
    learner.observe(take_without_outliers(memory, rows))
    try:
        learner.fit(memory, FIRST_MODEL_STEPS, MODEL_BATCH, np.random.default_rng(len(rows)), rows[~latest])
    except DivergedError:
        return -np.inf  # if that lasts, the first fit that counts says so
    return learner.r_squared(memory.take(rows[latest]))[0]


def choose_preset(ensemble: Ensemble, memory: Memory) -> tuple[str, str]:
    """
    Choose a preset.

    :param ensemble: a model that has learned nothing yet, and stays so
    :param memory: random steps
    :return: ``"free"`` where episodes end by themselves, steps pay differently and the model misses much, else
        ``"corrected"``; and why, in words
    """
    data = memory.take(memory.newest(MEASURED))
    n_falls, rewards = int(data.terminated.sum()), data.rewards[~data.terminated]
    if n_falls < ENOUGH_FALLS:
        return "corrected", f"{n_falls} of the latest random episodes ended by themselves, fewer than {ENOUGH_FALLS}"
    if not len(rewards) or not rewards.std() > SPREAD_OF_REWARDS * np.abs(rewards).mean():
        return "corrected", "all steps pay nearly the same"
    explained = measure_r2(ensemble, memory)
    if explained >= ENOUGH_R2:
        return "corrected", f"a first model predicts the state well (R2 {explained:.3f})"
    return "free", f"episodes end by themselves, steps pay differently and a first model misses much (R2 {explained:.3f})"
