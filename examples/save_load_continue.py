"""Train, save, load and continue: the controllers, dual variables and replayed trajectories survive with the policy."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dpi import MDGPS

BUDGET = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000

env = make_vec_env("Reacher-v5", n_envs=2, seed=1)
eval_env = make_vec_env("Reacher-v5", seed=1001)
model = MDGPS("MlpPolicy", env, seed=1).learn(BUDGET)
print(f"{model.num_timesteps} steps: {evaluate_policy(model, eval_env)[0]:.2f}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mdgps_reacher"
    model.save(path)
    loaded = MDGPS.load(path, env=make_vec_env("Reacher-v5", n_envs=4, seed=2))  # the number of environments may change

obs = eval_env.reset()
assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
loaded.learn(BUDGET, reset_num_timesteps=False)
print(f"{loaded.num_timesteps} steps: {evaluate_policy(loaded, eval_env)[0]:.2f}")
