"""The short trainings of ``same_numbers.py``, and the words that differ between an older tree and a newer one.

Cases are written in the words of the oldest tree that they are run in. Where a tree does not know a word, ``RENAMED`` has the
newer one, ``REMOVED`` says that it is gone, and any other unknown word is an error: whoever renames an argument adds a row to
``former_words.py``.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import former_words
import numpy as np
from former_words import Renamed

RENAMED: dict[str, dict[str, Any]] = {
    **former_words.RENAMED,
    # net_arch of the cases is of both networks; "" is none: other arguments of the case say it already
    "DPI": {**former_words.RENAMED["DPI"], "critic_width": Renamed("")},
}
"""Older word of an argument -> newer word, by algorithm"""

REMOVED: dict[str, tuple[str, ...]] = dict(former_words.GONE)
"""Arguments that newer trees have not"""

REMOVED_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {"DPI": {"critic": ("windows",)}}
"""Values that newer trees refuse, of arguments that they have"""

RENAMED_PARAMETERS: tuple[tuple[str, str], ...] = ()
"""Older name in ``get_parameters()`` -> newer name: a regular expression and what replaces it, as in ``re.sub``, applied in
turn; names of nested entries are joined by slashes, as in ``"policy.optimizer/state/0/exp_avg"``"""


@dataclass(frozen=True)
class Case:
    """A short training."""

    name: str
    algorithm: str
    """a class of ``sb3_dpi``"""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """of the constructor, beside those of ``SMALL``"""
    env: str = "Pendulum-v1"
    env_kwargs: tuple[Mapping[str, Any], ...] = ({},)
    """one environment each, so that two that differ make two different environments"""
    wrappers: tuple[str, ...] = ()
    """of ``"normalize"`` (VecNormalize) and ``"dict"`` (observations in a dictionary)"""
    policy: str | Mapping[str, Any] = "MlpPolicy"
    """of MPC its planner"""
    steps: int | None = None
    """real ones; None takes those of ``STEPS``"""
    continued: bool = False
    """saved after these steps, loaded, and continued for as many"""


@dataclass
class Outcome:
    """Of a case in one tree."""

    status: str
    """``"ran"``, ``"gone"`` (this tree has not what it needs) or ``"failed"``"""
    message: str = ""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """
        Write it whole or not at all.

        :param path: of the file
        """
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(vars(self)))
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Outcome":
        """
        Read it.

        :param path: of the file
        :return: what was saved
        """
        return cls(**pickle.loads(path.read_bytes()))


TIME_LIMIT = 30
"""Steps of an episode"""


def swing(obs: Any) -> Any:
    """An expert of Pendulum's: it pushes the way it swings.

    :param obs: ``[n, 3]``
    :return: torques, ``[n, 1]``
    """
    return np.clip(obs[:, 2:], -2.0, 2.0)


SMALL: dict[str, dict[str, Any]] = {
    "MDGPS": {
        "horizon": 10,
        "n_conditions": 2,
        "samples_per_condition": 3,
        "replay": 1,
        "imitation_steps": 5,
        "policy_kwargs": {"net_arch": [8]},
    },
    "AggreVaTeDOC": {
        "horizon": 10,
        "n_conditions": 2,
        "samples_per_condition": 3,
        "replay": 1,
        "conditions": "random",
        "aggregate": False,
        "n_critic_updates": 2,
        "policy_kwargs": {"net_arch": [8]},
    },
    "DualAC": {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "policy_kwargs": {"net_arch": [8]}},
    "DPI": {
        "n_steps": 40,
        "learning_starts": 40,
        "batch_size": 16,
        "n_windows": 10,
        "horizon": 2,
        "n_branches": 50,
        "effort": 0.04,
        "policy_delay": 2,
        "model_width": 16,
        "critic_width": 16,
        "policy_kwargs": {"net_arch": [16, 16]},
    },
    "MPC": {
        "horizon": 3,
        "replan_every": 3,
        "learning_starts": 40,
        "train_freq": 40,
        "world_model": {"n_members": 2, "width": 8, "gradient_steps": 0.5},
    },
    "DAgger": {
        "expert": swing,
        "train_freq": 40,
        "batch_size": 16,
        "gradient_steps": 10,
        "policy_kwargs": {"net_arch": [8]},
    },
    "ExIt": {
        "train_freq": 40,
        "learning_starts": 0,
        "gradient_steps": 2,
        "batch_size": 16,
        "n_simulations": 4,
        "policy_kwargs": {"net_arch": [8]},
    },
}
"""Arguments with which an iteration takes milliseconds"""
STEPS = {"MDGPS": 180, "AggreVaTeDOC": 180, "DualAC": 192, "DPI": 160, "MPC": 120, "DAgger": 120, "ExIt": 120}
"""Three iterations"""

FALLS = "InvertedDoublePendulum-v5"
FREE = {
    "tau": 0.005,
    "anchor": False,
    "target_kl": None,
    "restart_after": None,
    "averaging": 0.001,
    "noise_correlation": 0.8,
    "noise_scale": 2.0,
    "gamma": 0.995,
    "critic_settling": 20,
    "branch_length": 10,
}
"""DPI's preset for tasks with falls, in the words of before, but with few updates until the critic settles"""
TWO = ({}, {})
DIFFERENT = ({"g": 9.0}, {"g": 12.0})


def pendulum_cost(obs: Any, action: Any, next_obs: Any) -> Any:
    """A smooth cost like Pendulum's.

    :param obs: cosine, sine and velocity, ``[n, 3]``
    :param action: torque, ``[n, 1]``
    :param next_obs: ``[n, 3]``
    :return: ``[n]``
    """
    return 4.0 * (1.0 - obs[:, 0]) + 0.1 * obs[:, 2] ** 2 + 0.001 * action[:, 0] ** 2


def double_pendulum_falls(obs: Any, action: Any, next_obs: Any) -> Any:
    """A known end of episodes.

    :param obs: ``[n, 9]``
    :param action: ``[n, 1]``
    :param next_obs: ``[n, 9]``, the cosine of the first angle in the fourth place
    :return: bool, ``[n]``
    """
    return next_obs[:, 3] < 0.8


def _local(algorithm: str, prefix: str, kinds: tuple[str, ...]) -> tuple[Case, ...]:
    """What the algorithms with local models share; ``kinds`` of conditions, but for the default."""
    options: dict[str, dict[str, Any]] = {
        "niw": {"dynamics": "niw"},
        "gmm": {"dynamics": "gmm"},
        "prior-options": {"dynamics": {"prior": "niw", "window": 2}, "cost": {"local_window": 2}},
        "regression": {"linearization": "niw"},
        "cost-known": {"cost_fn": pendulum_cost},
        "schedules": {"min_std": "lin_0.4", "learning_rate": 1e-2},
        "no-replay": {"replay": 0},
        "long": {"horizon": TIME_LIMIT},
    }
    return (
        Case(prefix, algorithm),
        *(Case(f"{prefix}-{kind}", algorithm, {"conditions": kind}) for kind in kinds),
        *(Case(f"{prefix}-{name}", algorithm, arguments) for name, arguments in options.items()),
        Case(f"{prefix}-falls", algorithm, env=FALLS),
        Case(f"{prefix}-normalized", algorithm, wrappers=("normalize",)),
        Case(f"{prefix}-environments", algorithm, env_kwargs=TWO),
        Case(f"{prefix}-different", algorithm, env_kwargs=DIFFERENT, steps=360),
        Case(f"{prefix}-dict", algorithm, wrappers=("dict",), policy="MultiInputPolicy"),
        Case(f"{prefix}-continued", algorithm, continued=True),
    )


MDGPS = (
    *_local("MDGPS", "mdgps", ("fixed", "random", "continue", "mixed")),
    Case("mdgps-classic", "MDGPS", {"conditions": "fixed", "step_rule": "classic"}),
    Case("mdgps-global", "MDGPS", {"conditions": "fixed", "step_rule": "global"}),
    Case("mdgps-local-lqr", "MDGPS", {"conditions": "fixed", "sampling": "local", "initial_controller": "lqr"}),
    Case("mdgps-local-pd", "MDGPS", {"conditions": "fixed", "sampling": "local", "initial_controller": "pd"}),
    Case("mdgps-kl-per-step", "MDGPS", {"kl_per_time_step": True, "kl_step": "lin_0.5"}),
)
AGGREVATED_OC = (
    *_local("AggreVaTeDOC", "aggrevated", ("fixed", "fresh", "continue", "mixed")),
    Case("aggrevated-aggregate", "AggreVaTeDOC", {"aggregate": True}),
    Case("aggrevated-believed", "AggreVaTeDOC", {"safeguard": "off", "plan_lambda": 1.0}),
    Case("aggrevated-half-believed", "AggreVaTeDOC", {"safeguard": 0.5, "trust_region": "lin_0.5"}),
    Case("aggrevated-no-expert", "AggreVaTeDOC", {"trust_region": 0.0}),
    Case("aggrevated-critic-replay", "AggreVaTeDOC", {"critic_replay": True}),
    Case("aggrevated-lasting-noise", "AggreVaTeDOC", {"noise_correlation": 0.5}),
)
DUAL_AC = (
    Case("dual-ac", "DualAC"),
    Case("dual-ac-falls", "DualAC", env=FALLS),
    Case("dual-ac-discrete", "DualAC", env="CartPole-v1"),
    *(Case(f"dual-ac-{kind}", "DualAC", {"gradient": kind}, FALLS) for kind in ("averaged", "literal")),
    Case("dual-ac-decaying", "DualAC", {"step_rule": "decaying", "target_kl": "lin_0.05"}),
    Case("dual-ac-constant", "DualAC", {"step_rule": "constant", "cg_damping": 0.1}),
    Case("dual-ac-one-step", "DualAC", {"window_length": 1}),
    Case("dual-ac-one-gradient", "DualAC", {"inner_tolerance": None}),
    Case("dual-ac-equal-weights", "DualAC", {"dual_weights": False}),
    Case("dual-ac-new-values", "DualAC", {"held_out_values": False}),
    Case("dual-ac-no-path", "DualAC", {"path_regularization": 0.0}),
    Case("dual-ac-no-game", "DualAC", {"path_regularization": float("inf")}),
    Case("dual-ac-resets", "DualAC", {"restart_after": 15}, env_kwargs=TWO),
    Case("dual-ac-equal-resets", "DualAC", {"n_steps": 20, "restart_after": 15, "restart_spread": False}, env_kwargs=TWO),
    Case("dual-ac-no-resets", "DualAC", {"restart_after": None}),
    Case("dual-ac-gsde", "DualAC", {"use_sde": True, "sde_sample_freq": 8}),
    Case("dual-ac-rbf", "DualAC", {"policy_kwargs": {"features_extractor_kwargs": {"n_features": 10}}}, policy="RBFPolicy"),
    Case("dual-ac-normalized", "DualAC", wrappers=("normalize",)),
    Case("dual-ac-environments", "DualAC", {"n_steps": 32}, env_kwargs=TWO),
    Case("dual-ac-dict", "DualAC", wrappers=("dict",), policy="MultiInputPolicy"),
    Case("dual-ac-continued", "DualAC", continued=True),
)
EXPERTS = ("lqr", "mppi", "icem")
DPI = (
    Case("dpi", "DPI"),
    Case("dpi-anchored", "DPI", {"anchor": True, "noise_correlation": 0.0}, FALLS),
    Case("dpi-free", "DPI", FREE, FALLS),
    Case("dpi-chooses", "DPI", {"learning_starts": 400, "n_steps": None, "effort": 0.01}, "Hopper-v5", steps=900),
    *(Case(f"dpi-{kind}", "DPI", {"expert": kind}) for kind in EXPERTS),
    *(Case(f"dpi-free-{kind}", "DPI", {**FREE, "expert": kind}, FALLS) for kind in EXPERTS),
    Case("dpi-expert-options", "DPI", {"expert": {"kind": "icem", "n_elites": 3}, "trust_region": 0.5}),
    Case("dpi-imitation", "DPI", {"expert": "lqr", "imitation_steps": 3}),
    Case("dpi-windows", "DPI", {"critic": "windows"}),
    Case("dpi-returns", "DPI", {"critic": "returns"}),
    Case("dpi-real-only", "DPI", {"real_fraction": 1.0, "horizon": 0}),
    Case("dpi-tested", "DPI", {"test_every": 2}),
    Case("dpi-cost-known", "DPI", {"cost_fn": pendulum_cost}),
    Case("dpi-end-known", "DPI", {"termination_fn": double_pendulum_falls}, FALLS),
    Case("dpi-temperature-fixed", "DPI", {"ent_coef": 0.05, "noise_scale": "lin_1.0"}),
    Case("dpi-resets", "DPI", {"restart_after": 15}, env_kwargs=TWO),
    Case("dpi-small-buffer", "DPI", {"buffer_size": 80}),
    Case("dpi-one-hidden-layer", "DPI", {"policy_kwargs": {"net_arch": [16]}}),
    Case("dpi-normalized", "DPI", wrappers=("normalize",)),
    Case("dpi-free-normalized", "DPI", FREE, FALLS, wrappers=("normalize",)),
    Case("dpi-environments", "DPI", {"n_steps": 20}, env_kwargs=TWO),
    Case("dpi-dict", "DPI", wrappers=("dict",), policy="MultiInputPolicy"),
    Case("dpi-continued", "DPI", continued=True),
    Case("dpi-free-continued", "DPI", FREE, FALLS, wrappers=("normalize",), continued=True),
)
FEW: dict[str, Any] = {"kind": "iCEM", "n_samples": 8, "n_elites": 3}
MPC = (
    Case("mpc-icem", "MPC", policy=FEW),
    Case("mpc-cem", "MPC", policy={**FEW, "kind": "CEM"}),
    *(Case(f"mpc-{kind.lower()}", "MPC", policy={"kind": kind, "n_samples": 8}) for kind in ("MPPI", "random")),
    Case("mpc-cost-known", "MPC", {"cost_fn": pendulum_cost}, policy=FEW),
    Case("mpc-ts1", "MPC", {"particles": "ts1", "n_particles": 4}, policy=FEW),
    Case("mpc-falls", "MPC", env=FALLS, policy=FEW),
    Case("mpc-normalized", "MPC", wrappers=("normalize",), policy=FEW),
    Case("mpc-continued", "MPC", policy=FEW, continued=True),
)
DAGGER = (
    Case("dagger", "DAgger"),
    Case("dagger-half", "DAgger", {"beta": 0.5}),
    Case("dagger-normalized", "DAgger", wrappers=("normalize",)),
    Case("dagger-environments", "DAgger", {"train_freq": 20}, env_kwargs=TWO),
)
EXIT = (
    Case("exit", "ExIt", env="CartPole-v1"),
    Case("exit-environments", "ExIt", {"train_freq": 20}, env="CartPole-v1", env_kwargs=TWO),
    Case("exit-continued", "ExIt", env="CartPole-v1", continued=True),
)
CASES = {case.name: case for case in (*MDGPS, *AGGREVATED_OC, *DUAL_AC, *DPI, *MPC, *DAGGER, *EXIT)}
