"""What Dual-AC's arguments may be."""

from collections.abc import Mapping
from typing import Any

from sb3_dpi.common.choices import as_schedule, check_choice, check_number
from sb3_dpi.common.early_resets import as_early_reset

GRADIENTS = ("causal", "averaged", "literal")
STEP_RULES = ("adaptive", "decaying", "constant")

RENAMED = {
    "restart_after": "early_reset (steps; 0 leaves none)",
    "restart_spread": 'early_reset={"after": steps, "spread": False}',
    "inner_tolerance": "n_critic_updates=0 in place of inner_tolerance=None; it is 1e-4",
    "dual_weights": "alpha_regularization=inf in place of dual_weights=False",
    "mu_weight": "nothing: it is 1",
    "normalize_advantage": "nothing: advantages are centred",
    "max_grad_norm": "nothing: it is 1",
    "cg_max_steps": "nothing: it is 20",
    "line_search_shrinking_factor": "nothing: it is .8",
    "line_search_max_iter": "nothing: it is 10",
}
"""Arguments of before, and what is written instead."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what is out of range or unknown.

    :param given: arguments by name; None is chosen later
    :raises ValueError: that names argument and value
    """
    given = {name: value for name, value in given.items() if value is not None}
    check_choice("gradient", given["gradient"], GRADIENTS)
    check_choice("step_rule", given["step_rule"], STEP_RULES)
    if "early_reset" in given:
        as_early_reset(given["early_reset"])
    for name in ("n_steps", "batch_size", "window_length"):
        if name in given and given[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {given[name]}")
    for name in ("gamma", "gae_lambda"):
        if name in given:
            check_number(name, given[name], 0.0, 1.0)
    for name in ("path_regularization", "n_critic_updates", "n_action_critic_updates", "cg_damping", "min_std", "max_std"):
        if name in given:
            check_number(name, given[name], 0.0, may_be_inf=name in ("path_regularization", "max_std"))
    for name in ("alpha_regularization", "target_kl"):
        if name in given:
            value = as_schedule(name, given[name])(1.0)
            check_number(name, value, 0.0, open_below=True, may_be_inf=name != "target_kl")
