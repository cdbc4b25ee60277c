"""Train on images: the planner sees the key "state", the policy only "image", so that it needs no state when deployed."""

import sys

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dpi import MDGPS

BUDGET = int(float(sys.argv[1])) if len(sys.argv) > 1 else 4000


class DotEnv(gym.Env):
    """Push a dot to the middle of an image."""

    action_space = spaces.Box(-1.0, 1.0, (2,))
    observation_space = spaces.Dict(state=spaces.Box(-1.0, 1.0, (2,)), image=spaces.Box(0, 255, (36, 36, 1), np.uint8))

    def observe(self) -> dict[str, np.ndarray]:
        x, y = np.exp(-20.0 * (np.linspace(-1.0, 1.0, 36) - self.position[:, None]) ** 2)
        return {"state": self.position.astype(np.float32), "image": np.uint8(255 * np.outer(y, x))[..., None]}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.8, 0.8, size=2)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.position = np.clip(self.position + 0.1 * action, -1.0, 1.0)
        return self.observe(), -float(self.position @ self.position), False, False, {}


model = MDGPS("MultiInputPolicy", DotEnv(), horizon=20, imitation_steps=100, batch_size=64, seed=1).learn(BUDGET)
env = DotEnv()
obs, _ = env.reset(seed=1001)
for _ in range(20):
    obs, *_ = env.step(model.predict({"image": obs["image"]}, deterministic=True)[0])  # no "state"
print(f"distance from the middle after 20 steps: {np.linalg.norm(env.position):.3f}")
