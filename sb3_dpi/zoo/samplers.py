"""Searches of hyperparameters with Optuna: what is tried for each algorithm of this package, and what came out.

A search space is one function: it asks a trial for values and returns arguments of the constructor. RL Zoo wants two, one that
samples and one that converts the parameters of a finished trial. Both are this function here, the second on a trial that
answers with the stored parameters, so that they cannot disagree.
"""

import math
import pickle
import warnings
from collections.abc import Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial

SearchSpace = Callable[[BaseTrial], dict[str, Any]]
Sampler = Callable[[BaseTrial, int, int, dict[str, Any]], dict[str, Any]]
Converter = Callable[[dict[str, Any]], dict[str, Any]]

NET_ARCHS = {"tiny": [32, 32], "small": [64, 64], "medium": [256, 256]}


def mdgps(trial: BaseTrial) -> dict[str, Any]:
    """Search space of MDGPS; ``horizon`` is not in it, for its range depends on the task."""
    # The trajectories of an iteration, not the conditions: they are what an iteration costs
    n_trajectories = trial.suggest_int("n_trajectories", 4, 40, log=True)
    samples_per_condition = trial.suggest_int("samples_per_condition", 2, 10)
    n_conditions = max(1, round(n_trajectories / samples_per_condition))
    gamma = 1.0 - trial.suggest_float("one_minus_gamma", 0.001, 0.05, log=True)
    batch_size = 2 ** trial.suggest_int("batch_size_pow", 6, 9)
    initial_std = trial.suggest_float("initial_std", 0.2, 1.0)
    # The derived values, as RL Zoo shows them beside the parameters of the best trial
    trial.set_user_attr("n_conditions", n_conditions)
    trial.set_user_attr("gamma", gamma)
    trial.set_user_attr("batch_size", batch_size)
    return {
        "n_conditions": n_conditions,
        "samples_per_condition": samples_per_condition,
        "conditions": trial.suggest_categorical("conditions", ["fresh", "random", "fixed"]),
        "replay": trial.suggest_int("replay", 0, 8),
        "gamma": gamma,
        "kl_step": trial.suggest_float("kl_step", 0.03, 3.0, log=True),
        "step_rule": trial.suggest_categorical("step_rule", ["fixed", "classic", "global"]),
        "dynamics": trial.suggest_categorical("dynamics", ["nearest", "niw", "gmm"]),
        "cost": {"local_window": trial.suggest_int("cost_window", 0, 6)},
        "min_std": trial.suggest_float("min_std", 0.05, 0.6, log=True),
        "imitation_steps": trial.suggest_int("imitation_steps", 50, 1000, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
        "batch_size": batch_size,
        "policy_kwargs": {
            "net_arch": list(NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))]),
            "log_std_init": math.log(initial_std),
        },
    }


def aggrevated_oc(trial: BaseTrial) -> dict[str, Any]:
    """Search space of AggreVaTeD-OC; ``horizon`` is not in it, for its range depends on the task."""
    gamma = 1.0 - trial.suggest_float("one_minus_gamma", 0.0001, 0.05, log=True)
    initial_std = trial.suggest_float("initial_std", 0.2, 1.0)
    trial.set_user_attr("gamma", gamma)
    return {
        "n_conditions": 1,
        "samples_per_condition": trial.suggest_int("samples_per_condition", 8, 40, log=True),
        "conditions": trial.suggest_categorical("conditions", ["random", "continue", "mixed"]),
        "replay": trial.suggest_int("replay", 0, 8),
        "aggregate": trial.suggest_categorical("aggregate", [False, True]),
        "gamma": gamma,
        "gae_lambda": trial.suggest_float("gae_lambda", 0.9, 1.0),
        "plan_lambda": trial.suggest_float("plan_lambda", 0.6, 1.0),
        "trust_region": trial.suggest_float("trust_region", 0.03, 1.0, log=True),
        "target_kl": trial.suggest_float("target_kl", 0.01, 0.2, log=True),
        "dynamics": trial.suggest_categorical("dynamics", ["nearest", "niw", "gmm"]),
        "cost": {"local_window": trial.suggest_int("cost_window", 0, 6)},
        "min_std": trial.suggest_float("min_std", 0.05, 0.5, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True),
        "policy_kwargs": {
            "net_arch": list(NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))]),
            "log_std_init": math.log(initial_std),
        },
    }


def dagger(trial: BaseTrial) -> dict[str, Any]:
    """Search space of DAgger; the expert is not in it."""
    batch_size = 2 ** trial.suggest_int("batch_size_pow", 5, 8)
    trial.set_user_attr("batch_size", batch_size)
    return {
        "beta": trial.suggest_categorical("beta", [0.0, 0.3, "lin_1.0"]),
        "train_freq": trial.suggest_int("train_freq", 100, 2000, log=True),
        "gradient_steps": trial.suggest_int("gradient_steps", 200, 5000, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        "batch_size": batch_size,
        "policy_kwargs": {"net_arch": list(NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))])},
    }


def dpi(trial: BaseTrial) -> dict[str, Any]:
    """Search space of DPI."""
    gamma = 1.0 - trial.suggest_float("one_minus_gamma", 0.0005, 0.03, log=True)
    trial.set_user_attr("gamma", gamma)
    return {
        "gamma": gamma,
        "tau": trial.suggest_float("tau", 0.002, 0.05, log=True),
        "imagination": {"horizon": trial.suggest_int("horizon", 1, 8)},
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True),
        "critic": {
            "learning_rate": trial.suggest_float("critic_learning_rate", 3e-4, 3e-3, log=True),
            "real_fraction": trial.suggest_float("real_fraction", 0.05, 1.0),
        },
        "policy_delay": trial.suggest_int("policy_delay", 5, 20),
        "target_entropy": trial.suggest_float("target_entropy", -6.0, 0.0),
        "preset": {"noise_correlation": trial.suggest_float("noise_correlation", 0.0, 0.9)},
        "early_reset": trial.suggest_int("early_reset", 100, 1000, log=True),
    }


def dual_ac(trial: BaseTrial) -> dict[str, Any]:
    """Search space of Dual-AC."""
    gamma = 1.0 - trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    n_steps = 2 ** trial.suggest_int("n_steps_pow", 5, 9)
    batch_size = 2 ** trial.suggest_int("batch_size_pow", 5, 9)
    initial_std = trial.suggest_float("initial_std", 0.2, 1.0)
    trial.set_user_attr("gamma", gamma)
    trial.set_user_attr("n_steps", n_steps)
    trial.set_user_attr("batch_size", batch_size)
    return {
        "n_steps": n_steps,
        "batch_size": batch_size,
        "gamma": gamma,
        "window_length": trial.suggest_int("window_length", 5, 100, log=True),
        "gae_lambda": trial.suggest_float("gae_lambda", 0.9, 1.0),
        "path_regularization": trial.suggest_float("path_regularization", 1.0, 1000.0, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30, log=True),
        "gradient": trial.suggest_categorical("gradient", ["causal", "averaged"]),
        "alpha_regularization": trial.suggest_float("alpha_regularization", 0.5, 20.0, log=True),
        "target_kl": trial.suggest_float("target_kl", 0.01, 0.2, log=True),
        "cg_damping": trial.suggest_float("cg_damping", 0.03, 3.0, log=True),
        "min_std": trial.suggest_float("min_std", 0.0, 0.3),
        "max_std": max(initial_std, 0.75),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True),
        "policy_kwargs": {
            "net_arch": list(NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))]),
            "log_std_init": math.log(initial_std),
        },
    }


def exit_(trial: BaseTrial) -> dict[str, Any]:
    """Search space of ExIt."""
    gamma = 1.0 - trial.suggest_float("one_minus_gamma", 0.001, 0.05, log=True)
    trial.set_user_attr("gamma", gamma)
    return {
        "gamma": gamma,
        "n_simulations": trial.suggest_int("n_simulations", 8, 100, log=True),
        "exploration": trial.suggest_float("exploration", 0.5, 4.0, log=True),
        "temperature": trial.suggest_float("temperature", 0.25, 1.0),
        "root_noise": trial.suggest_float("root_noise", 0.0, 0.5),
        "gae_lambda": trial.suggest_float("gae_lambda", 0.7, 1.0),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True),
        "vf_coef": trial.suggest_float("vf_coef", 0.1, 1.0),
        "policy_kwargs": {"net_arch": list(NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))])},
    }


def mpc(trial: BaseTrial) -> dict[str, Any]:
    """Search space of MPC that learns an ensemble and plans in it with iCEM."""
    n_samples = trial.suggest_int("n_samples", 30, 200, log=True)
    return {
        "policy": {
            "kind": "iCEM",
            "n_samples": n_samples,
            "n_elites": max(n_samples // 10, 3),
            "n_rounds": trial.suggest_int("n_rounds", 2, 5),
            "exponent": trial.suggest_float("exponent", 0.0, 3.0),
            "spread": trial.suggest_float("spread", 0.2, 0.8),
        },
        "horizon": trial.suggest_int("horizon", 8, 50, log=True),
        "particles": trial.suggest_categorical("particles", ["tsinf", "ts1"]),
        "world_model": {
            "width": 2 ** trial.suggest_int("width_pow", 6, 8),
            "learning_rate": trial.suggest_float("learning_rate", 5e-4, 3e-3, log=True),
            "gradient_steps": trial.suggest_float("gradient_steps", 1.0, 8.0, log=True),
        },
    }


SEARCH_SPACES: dict[str, SearchSpace] = {
    "aggrevated_oc": aggrevated_oc,
    "dagger": dagger,
    "dpi": dpi,
    "dual_ac": dual_ac,
    "exit": exit_,
    "mdgps": mdgps,
    "mpc": mpc,
}
"""From the name of an algorithm to its search space"""


def _sample(
    space: SearchSpace, trial: BaseTrial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    return space(trial)


def _convert(space: SearchSpace, params: dict[str, Any]) -> dict[str, Any]:
    return space(FixedTrial(params))


def register_samplers(samplers: MutableMapping[str, Sampler], converters: MutableMapping[str, Converter]) -> None:
    """
    Add the search spaces of this package to RL Zoo.

    :param samplers: ``rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER``, changed in place
    :param converters: ``rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER``, changed in place
    """
    for name, space in SEARCH_SPACES.items():
        samplers[name] = partial(_sample, space)
        converters[name] = partial(_convert, space)


def _load_study(storage: str, study_name: str) -> optuna.Study:
    kept: Any = storage
    if storage.endswith(".log"):
        # Optuna would create it
        if not Path(storage).is_file():
            raise ValueError(f"There is no file {storage}: --storage names the one that the search wrote")
        kept = JournalStorage(JournalFileBackend(storage))
    names = optuna.get_all_study_names(kept)
    if study_name not in names:
        raise ValueError(f"There is no study {study_name!r} in {storage}, it holds: {', '.join(sorted(names)) or 'none'}")
    return optuna.load_study(study_name=study_name, storage=kept)


def find_trial(storage: str, study_name: str, trial_id: str) -> tuple[FrozenTrial, str]:
    """
    Find the trial whose hyperparameters are asked for.

    :param storage: A journal file ``*.log`` or the URL of a database, as for RL Zoo's ``--storage``
    :param study_name: Name of the study
    :param trial_id: Number of the trial, or ``"best"``
    :return: The trial, and the number under which RL Zoo finds it. RL Zoo takes 0 for "no trial" and reads others as an index
        into the list of trials, so that the first one is reached by its negative index
    :raises ValueError: If there is no such study or trial
    """
    trials = (study := _load_study(storage, study_name)).trials
    if trial_id == "best":
        if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials):
            raise ValueError(f"No trial of study {study_name!r} is finished")
        trial = study.best_trial
    else:
        if not trial_id.isdecimal() or int(trial_id) >= len(trials):
            raise ValueError(f"--trial-id is 'best' or from 0 to {len(trials) - 1} in study {study_name!r}, got {trial_id!r}")
        trial = trials[int(trial_id)]
    if not trial.params:
        raise ValueError(f"Trial {trial.number} of study {study_name!r} has no parameters (it is {trial.state.name.lower()})")
    return trial, str(trial.number or -len(trials))


def draw_study(report: Path) -> list[Path]:
    """
    Draw the history of a study and the importance of its parameters beside the report that RL Zoo pickled: RL Zoo only shows
    them, only where plotly is installed, and says nothing where it is not.
    """
    from matplotlib import pyplot as plt

    study = pickle.loads(report.read_bytes())
    drawn = []
    for name in ("optimization_history", "param_importances"):
        path = report.with_name(f"{report.stem}_{name}.png")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                axes: Any = getattr(optuna.visualization.matplotlib, f"plot_{name}")(study)
        except (ImportError, ValueError, RuntimeError) as error:
            # Older versions of Optuna want scikit-learn
            print(f"No figure {path.name}: {error}")
            continue
        axes.figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(axes.figure)
        drawn.append(path)
    return drawn
