"""What arguments of DPI mean that can be given in several ways, and what former ones are called now."""

from collections.abc import Mapping
from typing import Any

from sb3_dpi.common.choices import as_settings, check_choice, check_number, parse_choice
from sb3_dpi.common.plan_size import LARGEST_PLAN
from sb3_dpi.dpi.constants import DEFAULT_TEMPERATURE
from sb3_dpi.dpi.policies import MlpPolicy
from sb3_dpi.world_model.critic import Critic, CriticOptions
from sb3_dpi.world_model.experts import EXPERTS, Expert
from sb3_dpi.world_model.imagination import Imagination
from sb3_dpi.world_model.returns_critic import CRITICS

FORMER_ARGUMENTS = {
    "n_steps": "train_freq (returns of several steps, SAC's n_steps, have no counterpart)",
    "form": "preset ('corrected' for 'anchored', 'free' for 'free')",
    "horizon": "imagination={'horizon': ...}",
    "n_windows": "imagination={'n_windows': ...}",
    "n_branches": "imagination={'n_rollout_steps': ...}",
    "branch_length": "imagination={'rollout_length': ...}",
    "anchor": "imagination={'on_policy_correction': ...}",
    "trust_region": "expert={'kind': ..., 'trust_region': ...}",
    "imitation_steps": "expert={'kind': ..., 'imitation_steps': ...}",
    "effort": "update_to_data",
    "model_steps": "world_model={'gradient_steps': ...}",
    "n_members": "world_model={'n_members': ...}",
    "model_width": "world_model={'width': ...}",
    "model_learning_rate": "world_model={'learning_rate': ...}",
    "cost_fn": "world_model={'cost_fn': ...}",
    "termination_fn": "world_model={'termination_fn': ...}",
    "critic_updates": "policy_delay, the updates of the critic with each step of the policy",
    "real_fraction": "critic={'real_fraction': ...}",
    "critic_width": "policy_kwargs={'net_arch': {'qf': [...]}}",
    "critic_learning_rate": "critic={'learning_rate': ...}",
    "critic_settling": "critic={'lr_decay_after': ...}",
    "restart_after": "early_reset",
    "noise_correlation": "preset={'noise_correlation': ...}",
    "noise_scale": "preset={'noise_scale': ...}",
    "target_kl": "preset={'target_kl': ...}",
    "averaging": "preset={'polyak': ...}",
    "max_grad_norm": "preset={'max_grad_norm': ...}",
    "test_every": "nothing: tests of the policy are gone",
    "use_sde": "preset={'noise_correlation': ...}: DPI explores by noise that lasts",
    "optimize_memory_usage": "nothing: DPI needs true next observations",
}
"""From former arguments to what is written instead."""
FORMER_OPTIONS = {"n_particles": "n_samples"}
"""Likewise of experts."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """
    Refuse numbers that are out of range.

    :param given: arguments by name
    :raises ValueError: that names argument and value
    """
    for name in ("buffer_size", "batch_size", "policy_delay"):
        if given[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {given[name]}")
    if given["gradient_steps"] < -1:
        raise ValueError(f"gradient_steps must be at least -1, got {given['gradient_steps']}")
    if isinstance(given["target_entropy"], str) and given["target_entropy"] != "auto":
        raise ValueError(f"target_entropy must be a number or 'auto', got {given['target_entropy']!r}")
    if not given["update_to_data"] > 0.0:
        raise ValueError(f"update_to_data must be above 0, got {given['update_to_data']}")


def make_expert(expert: str | dict[str, Any] | Expert) -> Expert:
    """
    The expert that is meant.

    :param expert: its name, a dictionary of options with the name under ``"kind"``, or the expert itself
    :return: what plans
    :raises ValueError: if the name or an option is unknown, or a former one
    """
    if not isinstance(expert, str | Mapping):
        if isinstance(expert, type) or not hasattr(expert, "plan"):
            names = ", ".join(map(repr, EXPERTS))
            raise ValueError(f"expert must be one of {names}, a dictionary with its kind, or what plans, got {expert!r}")
        return expert
    kind, options = parse_choice("expert", expert, tuple(EXPERTS))
    for name in options:
        if name in FORMER_OPTIONS:
            raise ValueError(f"DPI's experts take other words now: instead of {name} write {FORMER_OPTIONS[name]}")
    return as_settings(f"expert {kind!r}", EXPERTS[kind], options)


def check_size(expert: Expert, imagination: Imagination, policy: MlpPolicy) -> None:
    """
    Refuse plans that would fill the memory, before anything is sampled.

    :param expert: what plans; those with a method ``n_bytes`` say how large it becomes
    :param imagination: windows of a plan
    :param policy: of states and actions
    :raises ValueError: if the plan is too large
    """
    n_bytes = getattr(expert, "n_bytes", None)
    if n_bytes is None:
        return
    needed = n_bytes(imagination.n_windows, imagination.horizon, policy.state_dim, policy.actor.action_dim)
    if needed > LARGEST_PLAN:
        raise ValueError(
            f"A plan of {type(expert).__name__} in {imagination.n_windows} windows of {imagination.horizon} steps takes "
            f"{needed / 2**30:.1f} GiB for states of {policy.state_dim} numbers; {LARGEST_PLAN / 2**30:.0f} GiB are the most. "
            'Take expert="pathwise", which knows no matrices, or imagination={"n_windows": ..., "horizon": ...} with less'
        )


def make_critic(policy: MlpPolicy, options: CriticOptions) -> Critic:
    """
    The critic that is meant, of a shape that fits a policy.

    :param policy: its networks are of the same kind, and it makes or shares what they read
    :param options: which critic, and how it learns
    :return: what closes a plan
    :raises ValueError: if the kind is unknown
    """
    check_choice("critic", options.kind, tuple(CRITICS))
    shared = policy.share_features_extractor
    return CRITICS[options.kind](
        policy.state_dim,
        policy.actor.action_dim,
        policy.net_arch["qf"],
        options.learning_rate,
        options.real_fraction,
        policy.activation_fn,
        policy.actor.features if shared else policy.make_features(),
        shared,
        policy.optimizer_class,
        policy.optimizer_kwargs,
    )


def first_temperature(ent_coef: str | float) -> float:
    """
    The temperature at first.

    :param ent_coef: a number, ``"auto"`` or ``"auto_NUMBER"``
    :return: in units of value
    :raises ValueError: if it is none of these, or not above zero
    """
    given = str(ent_coef).removeprefix("auto").removeprefix("_")
    try:
        start = float(given) if given else DEFAULT_TEMPERATURE
    except ValueError:
        raise ValueError(f"ent_coef={ent_coef!r}: write a number, 'auto' or 'auto_NUMBER'") from None
    check_number("ent_coef", start, 0.0, open_below=True)
    return start
