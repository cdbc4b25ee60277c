"""Key figures in the logger while a model trains."""

from stable_baselines3.common.callbacks import BaseCallback

from sb3_dpi.common.environments import Environment
from sb3_dpi.diagnose.measure import measure
from sb3_dpi.diagnose.subject import as_subject


class DiagnoseCallback(BaseCallback):
    """
    Writes the key figures of a look inside to the logger, and so to tensorboard, as ``diagnose/...``.

    Training goes on as without it: episodes are played in an environment of its own, with random numbers of their own. Their
    steps are not counted. A look costs ``2 n_episodes`` episodes and more, so look seldom.

    :param env: id or function that makes an environment like the training's
    :param every: real steps of training between two looks; usual: a tenth of all
    :param n_episodes: real episodes of each kind; usual: 2 to 5
    :param seed: of resets and noise, the same at each look
    :param verbose: 1 prints what was found
    :raises ValueError: if a number is out of range
    """

    def __init__(self, env: Environment, every: int = 5000, n_episodes: int = 3, seed: int = 0, verbose: int = 0):
        super().__init__(verbose)
        if every < 1 or n_episodes < 1:
            raise ValueError(f"every and n_episodes must be at least 1, got {every} and {n_episodes}")
        self.environment, self.every, self.n_episodes, self.seed = env, every, n_episodes, seed
        self.next_look = every

    def _on_training_start(self) -> None:
        self.next_look = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next_look:
            self.next_look = self.num_timesteps + self.every
            self._look()
        return True

    def _look(self) -> None:
        findings = measure(as_subject(self.model), self.environment, self.n_episodes, self.seed)
        for key in findings.keys:
            self.logger.record(f"diagnose/{key.name}", key.value)
            if self.verbose >= 1:
                print(f"{self.num_timesteps} steps, {key.title}: {key.value:.3g}")
