"""Numbers by which DPI chooses for the user, beside those of its presets (``presets.py``)."""

DEFAULT_WIDTHS = (64, 64)
"""Of policy and critic."""
DEFAULT_TEMPERATURE = 0.02
"""Where the temperature begins, in units of value."""
LOG_TEMPERATURE_BOUNDS = -12.0, 2.0

# random steps at first
LONGEST_WARM_UP, ENOUGH_EPISODES, SHORTEST_WARM_UP = 1000, 25, 100
"""Random steps at the beginning: so many, at most half of those that ``learn`` gets, or, with the preset that says so, fewer
once so many episodes have ended, but no fewer than the last."""
WARM_UP_BLOCK = 25
"""Random steps between two looks at whether they suffice."""
WARM_UP_CORRELATIONS, WARM_UP_SEGMENT = (0.0, 0.9), 100
"""Of one random step with the next, drawn anew after so many: white noise alone stays where it began, lasting noise alone
knows no fine movements, and a model must know both."""

# which preset
ENOUGH_FALLS = 10
"""Random episodes that must have ended by themselves before a task counts as one with falls."""
SPREAD_OF_REWARDS = 0.05
"""Standard deviation of rewards in units of their mean size from which steps pay differently: double pendulums have .02,
humanoids .11, hoppers .35 and more."""
ENOUGH_R2 = 0.99
"""R^2 of changes of the state below which a model misses much: a first one of pendulums has .95 to 1, of hoppers .3 to .98."""
MEASURED = 1000
"""Latest steps by which a preset is chosen."""

# updates
RECENT = 5000
"""Steps that count as recent: from half of them windows begin, and their rewards and returns give unit and bounds of value."""
LATEST_REWARDS = 300
"""Steps whose mean reward goes on where an episode was cut."""
FIRST_MODEL_STEPS, FIRST_CRITIC_UPDATES = 1500, 2000
"""At the first iteration, beside those of the others; the model that tells which preset takes as many."""
RENEWED_AFTER, N_PARTS = 25, 10
"""Steps of the policy after which one of so many parts of the model rollouts is drawn anew, where windows begin at their
states."""
MISSED = 1000
"""Latest real steps whose misses are noise on the model's."""
AVERAGED_SHARE = 8.0
"""The average is one of the last eighth of the policy's steps, until that is as long as ``polyak`` says."""
RATE_CHANGE, RATE_BOUNDS = 1.2, (0.1, 5.0)
"""By how much the policy's learning rate follows ``target_kl`` after each block, and how far at most."""
SETTLED_SHARE = 0.1
"""Of the critic's learning rate, what is left when it has fallen."""

# what is said
REPORTED = 1000
"""Latest steps that the logger's numbers are about."""
