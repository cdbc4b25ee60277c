"""Numbers by which MPC chooses for the user."""

WARM_UP = 250
"""Random steps at the beginning: at most half of those of ``learn``."""
BLOCK = 250
"""Steps of all environments between two fits."""
FIRST_FIT = 375
"""Real steps for which the first fit counts, which knows nothing yet."""
ITERATIONS = 20
"""Of iLQR in a plan, where nothing else is said: the next plan goes on from there."""
EDGE = 0.995
"""Up to which iLQR plans, in units of the bounds: the differences that it takes must stay within them."""
DRAWN, DRAWN_SPREAD, DRAWN_EXPONENT = 30, 0.5, 2.0
"""Slow sequences of actions beside the last plan, from the best of which iLQR begins: from rest alone it ends in the nearest
optimum, as a pendulum that hangs."""

# what is said
SHORTER = (
    "take fewer samples, rounds or iterations (policy={'kind': ..., 'n_samples': ...}), a shorter horizon, replan_every above "
    "1, or max_plan_seconds"
)
"""Advice where plans take long."""
