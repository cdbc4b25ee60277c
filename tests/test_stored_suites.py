"""What ``results`` keeps can be run again: its suites and its runs say today's words, and those are known by these."""

from dataclasses import replace
from pathlib import Path

import pytest

from sb3_dpi import AggreVaTeDOC
from sb3_dpi.compare.build import build_model
from sb3_dpi.compare.checks import SuiteError, check_hyperparameter
from sb3_dpi.compare.key import ALGORITHM_VERSION, configuration_key, run_key
from sb3_dpi.compare.record import StoredRun
from sb3_dpi.compare.study import TASKS, read_runs
from sb3_dpi.compare.suite import load_suite, make_configs, read_tasks

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
        assert run.configuration_key == configuration_key(run.config)
        assert run.key == run_key(run.config, run.versions)
        for word in run.config.hyperparams:
            if (run.config.algo, word) in known:
                continue
            try:
                check_hyperparameter(run.config.algo, word, word)
                known.add((run.config.algo, word))
            except SuiteError:
                former.add((str(run.folder.parents[1].relative_to(RESULTS)), word))
    assert len(known) > 50
    assert former == set()


def test_runs_of_other_defaults_say_them() -> None:
    """A suite that says nothing means the defaults of now."""
    then = {
        "aggrevated_oc": (4, {"n_conditions", "conditions", "aggregate", "replay"}),
        "dual_ac": (5, {"batch_size", "n_critic_updates", "window_length"}),
    }
    runs = [run for run in stored_runs(RESULTS) if run.config.algo in then]
    assert len(runs) > 500
    for run in runs:
        changed, words = then[run.config.algo]
        assert int(run.versions[ALGORITHM_VERSION]) >= changed or words <= set(run.config.hyperparams), str(run.folder)


def test_runs_are_found_whatever_the_other_versions(fresh: None, clean_caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AggreVaTeDOC, "algorithm_version", 1)
    run = next(run for run in stored_runs(RESULTS / "aggrevated_oc" / "trust_region") if run.config.label == "plain_npg")
    hyperparams = run.config.hyperparams
    assert hyperparams["trust"] == 0.0
    assert run.stands_in_for(run.config)
    assert not run.stands_in_for(replace(run.config, hyperparams={**hyperparams, "trust": 1.0}))
