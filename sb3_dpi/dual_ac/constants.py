"""Numbers by which Dual-AC chooses for the user."""

LONGEST_DISCOUNT = 0.995
"""Where no time limit asks for less."""
DEFAULT_RESET = 256
"""Median of the steps after which an episode is left."""
EPISODES, FEWEST_STEPS, MOST_STEPS = 10, 256, 1024
"""Of a rollout, where its steps are not given: those of so many episodes, within limits for all environments."""
RETURNS_MEMORY = 10
"""Iterations that the scale of the returns remembers."""

# the policy and its step
LARGEST_FIRST_STD, LARGEST_FIRST_SUM = 0.75, 3.0
"""Standard deviation of an action, and the sum of those of all."""
LAST_STD = 0.05
"""The largest standard deviation does not fall below it, whatever the smallest is."""
DEFAULT_KL = 0.05
SMALLEST_STEP = 1e-3
"""Of ``target_kl``, for the adaptive and the decaying step."""
STILL_LARGE = 0.25
"""Of the largest advantages: down to here the adaptive step is a full one, for locomotion's vary that much all along."""
CG_STEPS, LINE_SEARCH_STEPS, LINE_SEARCH_SHRINKING = 20, 10, 0.8

# the dual critic
TOLERANCE = 1e-4
"""V is solved when a pass over the samples gains less, in variances of the returns."""
INITIAL_STATES = 256
"""Observed resets that are kept as samples of mu."""
INITIAL_BATCH = 64
"""Initial states in a gradient step: their mean is all that it needs."""
LARGEST_GRADIENT = 1.0
"""Its norm in a gradient step."""

# the critic of actions
MOST_KEPT_STEPS = 20_000
"""Of all environments, that it learns from; a training of no more has one."""
ACTION_CRITIC_UPDATES = 640
"""Of Q in an iteration, in a training short enough for it."""
IMAGINED = 2048
"""States for which a step of the policy asks Q."""
WIDTH, LEARNING_RATE, BATCH = 64, 1e-3, 128
FOLLOWING = 0.01
"""Share by which the network that targets are taken from follows in a gradient step."""
PAIRS = 4
"""Of opposite draws, from which means over actions are taken; one for targets."""
SHORT_ITERATIONS = 32
"""Of a training that rollouts are shortened for, to ``FEWEST_STEPS``, where Q spares samples."""
MOST_HASTE = 2.0
"""Factor of the default KL where no more than these will be taken."""
