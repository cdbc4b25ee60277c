"""What ``results`` keeps can be run again: its suites say today's words, and stored runs are known by them."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from sb3_dpi import AggreVaTeDOC
from sb3_dpi.common.saved_models import renamed_arguments
from sb3_dpi.compare.build import build_model
from sb3_dpi.compare.checks import SuiteError, check_hyperparameter
from sb3_dpi.compare.former_words import GONE, RENAMED, present_words
from sb3_dpi.compare.key import configuration_key, in_present_words, run_key
from sb3_dpi.compare.record import StoredRun
from sb3_dpi.compare.study import TASKS, read_runs
from sb3_dpi.compare.suite import load_suite, make_configs, read_tasks
from sb3_dpi.zoo import algorithm_class
from sb3_dpi.zoo.register import ALGORITHMS

RESULTS = Path(__file__).parents[1] / "results"
SUITES = sorted(path for path in RESULTS.glob("*/*.yml") if path.name != TASKS)
STORED = {
    "aggrevated_oc/trust_region": (30, 30),
    "aggrevated_oc/priors": (9, 9),
    "mdgps/parts": (36, 36),
    # the others are of another version of their algorithm, or of defaults and entries of then
    "dpi/experts": (40, 60),
    "dpi/experts_swimmer": (14, 19),
    "dpi/parts": (99, 99),
    "dual_ac/game": (120, 120),
    "dual_ac/ablation": (0, 135),
    "dual_ac/confirmation": (0, 30),
    "dual_ac/strength": (0, 135),
}
"""Of each suite: how many stored runs are runs of it, and how many there are"""


def stored_runs(folder: Path) -> list[StoredRun]:
    runs, problems = read_runs(folder)
    assert not problems
    return runs


@pytest.mark.parametrize("path", SUITES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_suites_build(path: Path) -> None:
    suite = load_suite(str(path), seeds=1)
    configs = make_configs(suite)
    assert len(configs) == len(suite.algorithms) * len(suite.tasks)
    for config in configs:
        model = build_model(config)
        assert model.num_timesteps == 0
        model.get_env().close()


def test_tasks() -> None:
    found = [path.parent for path in RESULTS.glob(f"**/{TASKS}")]
    assert len(found) > 15
    assert all(read_tasks(folder) for folder in found)


@pytest.mark.parametrize("name", STORED)
def test_suites_know_their_runs(name: str) -> None:
    wanted = {configuration_key(config) for config in make_configs(load_suite(str(RESULTS / f"{name}.yml")))}
    runs = stored_runs(RESULTS / name)
    assert (sum(run.configuration_key in wanted for run in runs), len(runs)) == STORED[name]


def test_stored_runs_say_present_words() -> None:
    former, known = set(), set()
    for run in stored_runs(RESULTS):
        words = in_present_words(run.config, run.versions)
        assert run.configuration_key == configuration_key(words)
        assert run.key == run_key(words, run.versions)
        for word in words.hyperparams:
            if (words.algo, word) in known:
                continue
            try:
                check_hyperparameter(words.algo, word, word)
                known.add((words.algo, word))
            except SuiteError:
                former.add((str(run.folder.parents[1].relative_to(RESULTS)), word))
    assert len(known) > 50
    assert former == set()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_table_has_every_former_word(name: str) -> None:
    algorithm = ALGORITHMS[name]
    in_table = {*RENAMED.get(algorithm, {}), *GONE.get(algorithm, ())}
    # of both kinds: DPI's critic is an argument now too
    assert set(renamed_arguments(algorithm_class(name))) == in_table - ({"critic"} if name == "dpi" else set())


@pytest.mark.parametrize(
    "algorithm, former, present",
    [
        ("AggreVaTeDOC", {"safeguard": "off"}, {"trust": 1.0}),
        ("AggreVaTeDOC", {"safeguard": "calibration"}, {"trust": None}),
        ("AggreVaTeDOC", {"safeguard": 0.5}, {"trust": 0.5}),
        ("DualAC", {"restart_after": None}, {"early_reset": 0}),
        ("DualAC", {"restart_after": 64, "restart_spread": True}, {"early_reset": 64}),
        ("DualAC", {"restart_spread": False, "restart_after": 9}, {"early_reset": {"spread": False, "after": 9}}),
        ("DualAC", {"dual_weights": False, "inner_tolerance": None}, {"alpha_regularization": inf, "n_critic_updates": 0}),
        ("DualAC", {"dual_weights": True, "inner_tolerance": 1e-4}, {}),
        ("DPI", {"expert": "lqr", "trust_region": 0.1}, {"expert": {"kind": "lqr", "trust_region": 0.1}}),
        ("DPI", {"critic": "returns", "critic_settling": None}, {"critic": {"kind": "returns", "lr_decay_after": 0}}),
        ("DPI", {"critic": {"kind": "returns"}}, {"critic": {"kind": "returns"}}),
        ("DPI", {"critic_width": 64}, {"policy_kwargs": "dict(net_arch=dict(qf=[64, 64]))"}),
        ("DPI", {"averaging": 1.0, "target_kl": None}, {"preset": {"polyak": 1.0, "target_kl": 0}}),
        ("DPI", {"test_every": 4, "gamma": 0.9}, {"test_every": 4, "gamma": 0.9}),
        ("PPO", {"target_kl": None, "n_steps": 8}, {"target_kl": None, "n_steps": 8}),
    ],
)
def test_present_words(algorithm: str, former: dict, present: dict) -> None:
    assert present_words(algorithm, former) == present
    assert present_words(algorithm, present) == present


def test_runs_of_other_defaults_say_them() -> None:
    then = {"n_conditions": 1, "conditions": "random", "aggregate": False}
    assert present_words("AggreVaTeDOC", {"replay": 2}, version=2) == {**then, "replay": 2}
    assert present_words("AggreVaTeDOC", {"conditions": "mixed"}, version=1) == {**then, "replay": 2, "conditions": "mixed"}
    assert present_words("AggreVaTeDOC", {"conditions": "mixed"}, version=3) == {"replay": 2, "conditions": "mixed"}
    assert present_words("AggreVaTeDOC", {"conditions": "mixed"}, version=4) == {"conditions": "mixed"}


def test_runs_are_found_by_present_words(fresh: None, clean_caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AggreVaTeDOC, "algorithm_version", 1)  # theirs; defaults have changed since
    run = next(run for run in stored_runs(RESULTS / "aggrevated_oc" / "trust_region") if run.config.label == "plain_npg")
    assert run.config.hyperparams["safeguard"] == 0.0
    then = {"n_conditions": 1, "conditions": "random", "aggregate": False}
    hyperparams = {**then, **run.config.hyperparams, "trust": 0.0}
    del hyperparams["safeguard"]
    assert run.stands_in_for(replace(run.config, hyperparams=hyperparams))
    assert not run.stands_in_for(replace(run.config, hyperparams={**hyperparams, "trust": 1.0}))
