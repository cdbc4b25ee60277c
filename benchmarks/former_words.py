"""Words that the algorithms of this package took once, and what says the same now; older trees are told by them.

Stored runs say present words: whoever renames an argument rewrites those of ``results`` too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

LEFT_OUT = object()
"""Of a value that the present words need not say."""


@dataclass(frozen=True)
class Renamed:
    """What an argument of the constructor has become."""

    name: str
    """the newer word; ``"imagination.horizon"`` is the key ``horizon`` of the argument ``imagination``"""
    value: Callable[[Any], Any] | None = None
    """makes the newer value of the older one, or ``LEFT_OUT``; None leaves it"""
    beside: str | None = None
    """where a tree knows the older word too, but means something else by it: an argument that only such a tree knows"""


def _off_is_zero(value: Any) -> Any:
    return 0 if value is None else value


def _trust(safeguard: Any) -> Any:
    return {"calibration": None, "off": 1.0}.get(safeguard, safeguard)


def _width_of_critic(width: int) -> str:
    return f"dict(net_arch=dict(qf=[{width}, {width}]))"


_LOCAL = {"cost_fn": Renamed("cost")}
RENAMED: dict[str, dict[str, Renamed]] = {
    "MDGPS": _LOCAL,
    "AggreVaTeDOC": {
        **_LOCAL,
        "safeguard": Renamed("trust", _trust),
    },
    "DualAC": {
        "restart_after": Renamed("early_reset.after", _off_is_zero),
        "restart_spread": Renamed("early_reset.spread"),
        "inner_tolerance": Renamed("n_critic_updates", lambda tolerance: 0 if tolerance is None else LEFT_OUT),
        "dual_weights": Renamed("alpha_regularization", lambda weighs: LEFT_OUT if weighs else inf),
    },
    "DPI": {
        "n_steps": Renamed("train_freq"),
        "form": Renamed("preset.kind", lambda form: {"anchored": "corrected"}.get(form, form)),
        "effort": Renamed("update_to_data"),
        "trust_region": Renamed("expert.trust_region"),
        "imitation_steps": Renamed("expert.imitation_steps"),
        "model_width": Renamed("world_model.width"),
        "model_steps": Renamed("world_model.gradient_steps"),
        "model_learning_rate": Renamed("world_model.learning_rate"),
        "n_members": Renamed("world_model.n_members"),
        "cost_fn": Renamed("world_model.cost_fn"),
        "termination_fn": Renamed("world_model.termination_fn"),
        "critic": Renamed("critic.kind", beside="world_model"),
        "critic_width": Renamed("policy_kwargs", _width_of_critic),
        "critic_learning_rate": Renamed("critic.learning_rate"),
        "critic_settling": Renamed("critic.lr_decay_after", _off_is_zero),
        "real_fraction": Renamed("critic.real_fraction"),
        "horizon": Renamed("imagination.horizon"),
        "n_windows": Renamed("imagination.n_windows"),
        "n_branches": Renamed("imagination.n_rollout_steps"),
        "branch_length": Renamed("imagination.rollout_length"),
        "anchor": Renamed("imagination.on_policy_correction"),
        "restart_after": Renamed("early_reset.after", _off_is_zero),
        "target_kl": Renamed("preset.target_kl", _off_is_zero),
        "averaging": Renamed("preset.polyak"),
        "noise_correlation": Renamed("preset.noise_correlation"),
        "noise_scale": Renamed("preset.noise_scale"),
        "max_grad_norm": Renamed("preset.max_grad_norm"),
    },
}
"""Older word of an argument -> newer word, by the name of the algorithm's class"""

GONE: dict[str, tuple[str, ...]] = {
    "MDGPS": ("environments", "min_samples", "step_limits"),
    "AggreVaTeDOC": (
        "environments",
        "min_samples",
        "linearization",
        "cg_max_steps",
        "line_search_max_iter",
        "line_search_shrinking_factor",
    ),
    "DualAC": (
        "mu_weight",
        "normalize_advantage",
        "max_grad_norm",
        "cg_max_steps",
        "line_search_max_iter",
        "line_search_shrinking_factor",
    ),
    "DPI": ("test_every", "critic_updates", "use_sde", "optimize_memory_usage"),
}
"""Arguments that no newer one can stand in for: runs that set them are former ones"""


def put(arguments: dict[str, Any], name: str, key: str, value: Any) -> None:
    """Add an argument, or the entry ``key`` of one that is a dictionary; a name beside entries is their ``"kind"``."""
    present = arguments.get(name)
    if key:
        nested = present if isinstance(present, dict) else {} if present is None else {"kind": present}
        arguments[name] = {**nested, key: value}
    elif isinstance(present, dict):
        arguments[name] = {**present, **(value if isinstance(value, dict) else {"kind": value})}
    else:
        arguments[name] = value
