"""Runs that take long are announced before anything is sampled, as far as sizes tell."""

import warnings

from sb3_dpi.world_model.ensemble import WorldModel

OPERATIONS_A_SECOND = 1e10
"""Of floating-point numbers, on one core of 2024 in fits of the model. Measured."""
LONG_STEP = 0.25
"""Seconds of learning from a real step that nobody expects: a task of 400 numbers takes a third of it."""

LONG_RUN = 600.0
"""Seconds of planning that nobody expects of one call."""


def warn_of_long_run(who: str, seconds: float | None, n_steps: float, advice: str, stacklevel: int = 6) -> None:
    """
    Say that steps take long in which somebody plans.

    :param who: plans
    :param seconds: of a core for each step, see ``seconds_a_step``; None where they are not known
    :param n_steps: that are to be taken
    :param advice: what to do about it
    :param stacklevel: of the line that called ``learn``
    """
    if seconds is None or n_steps * seconds <= LONG_RUN:
        return
    hours = n_steps * seconds / 3600.0
    how_long = f"{hours:.0f} hours" if hours >= 2.0 else f"{60.0 * hours:.0f} minutes"
    warnings.warn(
        f"In these {int(n_steps):,} steps {who} plans for some {how_long} of a core, {seconds:.2g} seconds a step: {advice}",
        stacklevel=stacklevel,
    )


def warn_of_long_fits(
    who: str,
    options: WorldModel,
    sizes: tuple[int, int],
    batch_size: int,
    first: float,
    each: float,
    or_lower: str = "",
    stacklevel: int = 5,
) -> None:
    """
    Say before anything is sampled that the model of the environment takes long to fit.

    :param who: fits it
    :param options: of the model
    :param sizes: numbers of a state and of an action
    :param batch_size: of a gradient step
    :param first: gradient steps of the first fit
    :param each: those for each real step that follows
    :param or_lower: what else could be lower than the options
    :param stacklevel: of the line that makes the algorithm
    """
    (dx, du), width = sizes, options.width
    n_weights = options.n_members * width * (dx + du + width + dx + 1)
    # two operations for each weight and row on the way forward, four on the way back
    seconds = 6.0 * batch_size * n_weights / OPERATIONS_A_SECOND
    if each * seconds > LONG_STEP:
        at_first, later = first * seconds / 60.0, 1000.0 * each * seconds / 60.0
        warnings.warn(
            f"To fit a model of observations of {dx:,} numbers takes {who} some {at_first:.0f} minutes of a core at first, "
            f"and {later:.0f} for each 1,000 steps. Let it observe fewer numbers (an encoder's features), or lower "
            f'{or_lower}world_model={{"width": ..., "gradient_steps": ...}}',
            stacklevel=stacklevel,
        )
