"""Runs that take long are announced before anything is sampled, as far as sizes tell."""

import warnings

LONG_RUN = 600.0
"""Seconds of planning that nobody expects of one call."""


def warn_of_long_run(who: str, seconds: float | None, n_steps: float, advice: str) -> None:
    """
    Say that steps take long in which somebody plans.

    :param who: plans
    :param seconds: of a core for each step, see ``seconds_a_step``; None where they are not known
    :param n_steps: that are to be taken
    :param advice: what to do about it
    """
    if seconds is None or n_steps * seconds <= LONG_RUN:
        return
    hours = n_steps * seconds / 3600.0
    how_long = f"{hours:.0f} hours" if hours >= 2.0 else f"{60.0 * hours:.0f} minutes"
    warnings.warn(
        f"In these {int(n_steps):,} steps {who} plans for some {how_long} of a core, {seconds:.2g} seconds a step: {advice}",
        stacklevel=5,
    )
