"""Train MDGPS and TRPO on one task, evaluate both in the same way and print a table.

For several seeds, learning curves and stored evaluations: python -m sb3_dpi.compare --help
"""

import sys

from rich import print as rich_print
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.compare.build import constructor_arguments
from sb3_dpi.zoo import algorithm_class, resolve_hyperparams

ENV_ID = "Reacher-v5"
BUDGET = int(float(sys.argv[1])) if len(sys.argv) > 1 else 20_000

table = Table("algorithm", "environment steps", "mean return", "hyperparameters", title=ENV_ID)
for algo in ("mdgps", "trpo"):
    choice = resolve_hyperparams(algo, ENV_ID)
    env, eval_env = (make_vec_env(ENV_ID, n_envs=choice.hyperparams["n_envs"], seed=seed) for seed in (1, 1001))
    if choice.hyperparams.get("normalize"):
        env = VecNormalize(env)
        eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
        eval_env.obs_rms = env.obs_rms  # the same object: evaluation sees what training has learned
    model = algorithm_class(algo)(env=env, seed=1, device="cpu", **constructor_arguments(choice.hyperparams))
    model.learn(BUDGET)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=20)
    table.add_row(algo, f"{model.num_timesteps:,}", f"{mean:.2f} ± {std:.2f}", choice.source)
rich_print(table)
