"""Numbers by which DAgger chooses for the user."""

USUAL_EXPERT = "iCEM"
USUAL = 500
"""Steps of an iteration over all environments, where there are enough for five iterations."""
MEASURED = 5000
"""Samples by which the standard deviation is set, and units at most follow."""
MIN_STD = 0.01
"""Of the policy, in units of the bounds."""
