"""RL Zoo for the algorithms of this package: ``python -m sb3_dpi.zoo train|enjoy --algo mdgps --env ...``."""

from sb3_dpi.common.extras import need

need("zoo", "yaml")

from sb3_dpi.zoo.hyperparams import ResolvedHyperparams, resolve_hyperparams  # noqa: E402
from sb3_dpi.zoo.register import ALGORITHMS, algorithm_class, register_algorithms  # noqa: E402

__all__ = ["ALGORITHMS", "ResolvedHyperparams", "algorithm_class", "register_algorithms", "resolve_hyperparams"]
