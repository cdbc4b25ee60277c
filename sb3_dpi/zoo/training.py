"""RL Zoo's training with what it does not say in one line: its set-up, wrapped where RL Zoo makes environments and model."""

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from sb3_dpi.zoo.cause import in_one_line
from sb3_dpi.zoo.parser import Refused


@contextmanager
def one_line_for_setup() -> Iterator[None]:
    """
    Let a training that cannot begin say so in one line and leave no numbered folder.

    What goes wrong once it learns is an error of the environment or of the algorithm, and keeps its traceback.

    :raises Refused: If it cannot begin
    """
    from rl_zoo3.exp_manager import ExperimentManager

    is_learning = False

    def learning(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def noted(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_learning
            is_learning = True
            return method(*args, **kwargs)

        return noted

    wrapped = {
        "setup_experiment": _checked(ExperimentManager.setup_experiment),
        **{name: learning(getattr(ExperimentManager, name)) for name in ("learn", "hyperparameters_optimization")},
    }
    with ExitStack() as patches:
        for name, method in wrapped.items():
            patches.enter_context(patch.object(ExperimentManager, name, method))
        try:
            yield
        except Exception as error:
            if is_learning or isinstance(error, Refused):
                raise
            raise Refused(in_one_line(error)) from error


def _checked(set_up: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(set_up)
    def checked(self: Any) -> Any:
        is_whole = False
        try:
            results = set_up(self)
            if results is None:  # a search builds its first model only in a trial
                from rl_zoo3 import ALGOS

                env = self.create_envs(1, no_log=True)
                ALGOS[self.algo](env=env, device=self.device, **self._hyperparams)
                env.close()
            is_whole = results is not None
            return results
        finally:
            if not is_whole:  # enjoy would take it for the latest run
                shutil.rmtree(self.save_path, ignore_errors=True)

    return checked
