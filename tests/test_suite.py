"""What a comparison runs: suites as YAML and from the command line, and the messages about what is wrong in them."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from stored import NoEngine

from sb3_dpi.compare.schedule import run_all
from sb3_dpi.compare.store import Store
from sb3_dpi.compare.suite import (
    Entrant,
    Suite,
    SuiteError,
    Task,
    load_suite,
    make_configs,
    merged,
    parse_value,
    read_tasks,
    suite_from_arguments,
    write_tasks,
)
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo import algorithm_class, resolve_hyperparams
from sb3_dpi.zoo.hyperparams import SB3_DEFAULTS
from sb3_dpi.zoo.register import closest

CARTPOLE = "sb3_dpi/CartPoleBalance-v0"
FULL = """
name: trial
description: all keys
seeds: 2
first_seed: 4
evaluation: {every: 1e3, episodes: 3}
algorithms:
  trpo:
  ppo: {}
  small: {algo: ppo, set: {learning_rate: 1e-3, policy_kwargs: "dict(net_arch=[8])"}}
tasks:
  Pendulum-v1:
    thresholds: [-300, -200]
    scale: [-1200, -2e2]
    steps: {small: 3e3, default: 2000}
    env_kwargs: {g: 9.0}
    set: {small: {learning_rate: 2e-3, gamma: 0.9}}
  long_pole:
    env: sb3_dpi/CartPoleBalance-v0
    threshold: -6
    steps: 5000
    env_kwargs: {pole_length: 1.0}
  Reacher-v5:
"""
MODULE = """
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

class Mine(PPO):
    def __init__(self, policy, env, my_option=1, **kwargs):
        super().__init__(policy, env, **kwargs)

class Strict(PPO):
    def __init__(self, policy, env, my_option=1, learning_rate=0.1, verbose=0, seed=None, device="cpu"):
        super().__init__(policy, env)

class Other: ...
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Suite]:
    def load_content(content: str | dict[str, Any]) -> Suite:
        path = tmp_path / "mine.yml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return load_suite(str(path))

    return load_content


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "third_party_algorithms.py").write_text(MODULE)
    (tmp_path / "broken_algorithms.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "third_party_algorithms"


@cache
def packaged_configs(name: str) -> list[RunConfig]:
    return make_configs(load_suite(name))


def _suite(**changes: Any) -> dict[str, Any]:
    return {"algorithms": ["ppo"], "tasks": {"Reacher-v5": {"steps": 1000}}, **changes}


def _task(**content: Any) -> dict[str, Any]:
    return _suite(tasks={"Reacher-v5": content})


def test_all_keys_of_a_file_arrive(load: Callable[..., Suite]) -> None:
    suite = load(FULL)
    assert (suite.name, suite.description, suite.seeds, suite.first_seed) == ("trial", "all keys", 2, 4)
    assert (suite.evaluation.every, suite.evaluation.episodes) == (1000, 3)
    assert suite.algorithms == {
        "trpo": Entrant(algo="trpo"),
        "ppo": Entrant(algo="ppo"),
        "small": Entrant(algo="ppo", set={"learning_rate": 1e-3, "policy_kwargs": "dict(net_arch=[8])"}),
    }
    assert suite.tasks == {
        "Pendulum-v1": Task(
            env="Pendulum-v1",
            thresholds=(-300, -200),
            scale=(-1200, -200),
            steps={"small": 3000, "default": 2000},
            env_kwargs={"g": 9.0},
            set={"small": {"learning_rate": 2e-3, "gamma": 0.9}},
        ),
        "long_pole": Task(env=CARTPOLE, thresholds=(-6,), steps={"default": 5000}, env_kwargs={"pole_length": 1.0}),
        "Reacher-v5": Task(env="Reacher-v5"),
    }


def test_runs_of_a_suite(load: Callable[..., Suite]) -> None:
    configs = make_configs(load(FULL), device="meta")
    assert [(config.seed, config.task_name, config.name) for config in configs] == [
        (seed, task, name)
        for seed in (4, 5)
        for task in ("Pendulum-v1", "long_pole", "Reacher-v5")
        for name in ("trpo", "ppo", "small")
    ]
    assert [config.n_timesteps for config in configs[:9]] == [2000, 2000, 3000, 5000, 5000, 5000, *3 * [1_000_000]]
    assert {(config.device, config.eval_every, config.n_eval_episodes) for config in configs} == {("meta", 1000, 3)}
    small_on_pendulum, small_on_pole = configs[2], configs[5]
    zoo = resolve_hyperparams("ppo", "Pendulum-v1")
    changes = {"learning_rate": 2e-3, "policy_kwargs": "dict(net_arch=[8])", "gamma": 0.9}
    assert small_on_pendulum.hyperparams == {**zoo.hyperparams, **changes}
    words = ", learning_rate=0.002, policy_kwargs=dict(net_arch=[8]), gamma=0.9"
    assert small_on_pendulum.source == f"RL Zoo, Pendulum-v1{words}"
    assert (small_on_pendulum.label, small_on_pendulum.task, small_on_pendulum.algo) == ("small", "", "ppo")
    assert (small_on_pole.task, small_on_pole.env_id, small_on_pole.env_kwargs) == (
        "long_pole",
        CARTPOLE,
        {"pole_length": 1.0},
    )
    assert small_on_pole.hyperparams["learning_rate"] == 1e-3
    assert configs[1].label == "" and configs[1].source == "RL Zoo, Pendulum-v1"


def test_a_key_without_value_is_as_if_the_entry_did_not_have_it() -> None:
    (config,) = make_configs(suite_from_arguments(["sac"], ["Reacher-v5"], overrides=["sac.normalize=null"], seeds=1))
    assert config.hyperparams == {key: value for key, value in SB3_DEFAULTS.items() if key != "normalize"}
    assert config.source == "SB3 defaults, observations normalized, normalize=None"


@pytest.mark.parametrize(("name", "number"), [("demo", 4), ("quick", 12), ("mujoco", 240), ("dpi", 200), ("gps", 50)])
def test_packaged_suites(name: str, number: int) -> None:
    suite, configs = load_suite(name), packaged_configs(name)
    assert suite.name == name and suite.description
    assert len(configs) == number == len({config.path for config in configs})
    for task in suite.tasks.values():
        assert task.scale is not None and task.scale[1] == task.thresholds[-1] == max(task.thresholds)
    assert {config.source.startswith("sb3_dpi") for config in configs if config.algo == "mdgps"} == {True}


def test_budgets_of_the_baselines_are_those_of_the_protocol() -> None:
    for config in packaged_configs("mujoco"):
        long = config.env_id in ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5")
        expected = {"trpo": 300_000 if long else 200_000, "ppo": 300_000 if long else 200_000, "sac": 30_000}
        assert config.n_timesteps == expected.get(config.algo, config.n_timesteps) and config.eval_every == 250


def test_stored_baselines_serve_every_suite_but_the_quick_one() -> None:
    mujoco = {config.path: config for config in packaged_configs("mujoco")}
    for name in ("dpi", "gps"):
        shared = [config for config in packaged_configs(name) if config.path in mujoco]
        assert shared and all(config == mujoco[config.path] for config in shared)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_suite(sedes=3), "mine.yml: unknown key 'sedes', did you mean 'seeds'?"),
        (_suite(zzz=3), "unknown key 'zzz', choose one of: name, description, algorithms, tasks, seeds"),
        (_suite(seeds=0), "seeds: Input should be greater than 0, not 0"),
        (_suite(seeds=2.5), "seeds: Input should be a valid integer, got a number with a fractional part, not 2.5"),
        (_suite(seeds=True), "seeds: a number is needed, not True"),
        (_suite(evaluation={"evry": 3}), "evaluation: unknown key 'evry', did you mean 'every'?"),
        (_suite(evaluation=250), "evaluation: a mapping (KEY: VALUE) is needed, not 250"),
        ({"tasks": {"Reacher-v5": {}}}, "algorithms: missing"),
        (_suite(tasks={}), "tasks: Dictionary should have at least 1 item"),
        (_suite(algorithms="ppo"), "algorithms: Input should be a valid dictionary, not 'ppo'"),
        (_suite(algorithms=["ppo", "ppo"]), "algorithms: 'ppo' stands there twice"),
        (_suite(algorithms=["trppo"]), "algorithms.trppo: Unknown algorithm 'trppo', choose one of: a2c,"),
        (_suite(algorithms=["trppo"]), "did you mean 'trpo'"),
        (_suite(algorithms={"my/ppo": {"algo": "ppo"}}), "algorithms.my/ppo: a name has letters"),
        (_suite(algorithms={"default": {"algo": "ppo"}}), "algorithms.default: a name has letters"),
        (_suite(algorithms={"ppo": {"sett": {}}}), "algorithms.ppo: unknown key 'sett', did you mean 'set'?"),
        (
            _suite(algorithms={"ppo": {"set": {"learning_rat": 1}}}),
            "algorithms.ppo.set.learning_rat: PPO takes no such hyperparameter, did you mean 'learning_rate'",
        ),
        (_suite(algorithms={"ppo": {"set": {"callback": "x"}}}), "set.callback: a comparison does not support callback"),
        (_suite(algorithms={"ppo": {"set": {"seed": 1}}}), "set.seed: seed is set by the comparison itself"),
        (_task(treshold=-6), "tasks.Reacher-v5: unknown key 'treshold', did you mean 'thresholds'"),
        (_task(threshold="high"), "tasks.Reacher-v5.thresholds[0]: Input should be a valid number"),
        (_task(thresholds=[3, False]), "tasks.Reacher-v5.thresholds[1]: a number is needed, not False"),
        (_task(threshold=float("nan")), "tasks.Reacher-v5.thresholds[0]: Input should be a finite number, not nan"),
        (_task(threshold=3, thresholds=[3]), "tasks.Reacher-v5: give either threshold or thresholds"),
        (_task(scale=[1]), "tasks.Reacher-v5.scale[1]: missing"),
        (_task(scale=[1, 0]), "tasks.Reacher-v5.scale: the first number must be below the second, not [1.0, 0.0]"),
        (_task(steps="many"), "tasks.Reacher-v5.steps.default: Input should be a valid integer"),
        (_task(steps={"ppo": -1}), "tasks.Reacher-v5.steps.ppo: Input should be greater than 0, not -1"),
        (_task(steps={"pppo": 1}), "tasks.Reacher-v5.steps.pppo: no algorithm of the suite, did you mean 'ppo'?"),
        (_task(set={"trpo": {}}), "tasks.Reacher-v5.set.trpo: no algorithm of the suite, choose one of: ppo"),
        (_task(set={"ppo": {"n_step": 1}}), "tasks.Reacher-v5.set.ppo.n_step: PPO takes no such hyperparameter, did you"),
        (
            _suite(tasks={"Reecher-v5": {}}),
            "tasks.Reecher-v5.env: unknown environment 'Reecher-v5', did you mean 'Reacher-v5'",
        ),
        (_suite(tasks={"x": {"env": "a/b/c"}}), "tasks.x.env: unknown environment 'a/b/c', "),
        (_suite(tasks={"x": {"env": "no_such_module:A-v0"}}), "tasks.x.env: the module of environment 'no_such_module:A-v0'"),
        (
            _suite(tasks={"no_such_module:Reacher-v5": {}}),
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            _suite(tasks={"gymnasium:Reecher-v5": {}}),
            "unknown environment 'gymnasium:Reecher-v5', did you mean 'gymnasium:Reacher",
        ),
        (_suite(tasks={"x/y": {"env": "Reacher-v5"}}), "tasks.x/y: a name has letters"),
        (
            _suite(tasks={CARTPOLE: {"env_kwargs": {"pole_lenght": 1}}}),
            f"tasks.{CARTPOLE}.env_kwargs.pole_lenght: {CARTPOLE} takes no such argument, did you mean 'pole_length'",
        ),
        ("", "mine.yml: algorithms: missing"),
        ("- 1", "mine.yml: a mapping (KEY: VALUE) is needed, not [1]"),
        ("seeds: 3\nseeds: 4\n", "mine.yml, line 2: not valid YAML (the key 'seeds' is there twice)"),
        ("seeds: 3\ntasks: {a: [1\nb: 2}", "mine.yml, line 3: not valid YAML ("),
    ],
)
def test_what_is_wrong_in_a_file(load: Callable[..., Suite], content: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(message)):
        load(content)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"none\.yml: cannot be read \(No such file"):
        load_suite(str(tmp_path / "none.yml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(SuiteError, match=r"binary\.yaml: not valid YAML"):
        load_suite(str(tmp_path / "binary.yaml"))
    with pytest.raises(SuiteError, match=r"Unknown suite 'mujocco', did you mean 'mujoco'\?, or the path of a \.yml file"):
        load_suite("mujocco")
    with pytest.raises(SuiteError, match="Unknown suite 'zzz', choose one of: demo, dpi, gps, mujoco, quick"):
        load_suite("zzz")


def test_merged_keys_are_not_there_twice(load: Callable[..., Suite]) -> None:
    suite = load(
        "algorithms: [ppo]\ntasks:\n  Reacher-v5: &a {steps: 100, threshold: 1}\n"
        "  b: &b {<<: *a, env: Pendulum-v1, steps: 200}\n  c: {<<: *b, steps: 300}\n"
    )
    assert [(task.env, task.steps["default"]) for task in suite.tasks.values()] == [
        ("Reacher-v5", 100),
        ("Pendulum-v1", 200),
        ("Pendulum-v1", 300),
    ]


def test_environment_with_a_module_in_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "third_party_envs.py").write_text(
        "import gymnasium as gym\ngym.register('Elsewhere-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (config,) = make_configs(suite_from_arguments(["ppo"], ["third_party_envs:Elsewhere-v0"], seeds=1))
    assert config.env_id == "third_party_envs:Elsewhere-v0" and config.path == "ppo/Elsewhere-v0_1"
    del gym.registry["Elsewhere-v0"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.3", 0.3),
        ("1e-3", 1e-3),
        ("true", True),
        ("{a: [1, 2e-1]}", {"a": [1, 0.2]}),
        ("lin_0.1", "lin_0.1"),
        ("inf", "inf"),
        ("null", None),
    ],
)
def test_values_on_the_command_line(value: str, expected: Any) -> None:
    assert parse_value(value) == expected


def test_powers_of_ten_are_whole_numbers() -> None:
    # SB3 takes no float for a number of steps or of places in a buffer
    assert isinstance(parse_value("1e5"), int) and isinstance(parse_value("1.0e5"), float)


def _configs(algos: list[str], envs: list[str], *arguments: list[str], **settings: Any) -> list[RunConfig]:
    return make_configs(suite_from_arguments(algos, envs, *arguments, **settings))


def test_command_line_makes_runs() -> None:
    configs = _configs(
        *(["trpo,ppo", "small=ppo"], ["Reacher-v5,Pendulum-v1"], ["ppo:3e3", "2000"]),
        *(["small.learning_rate=1e-3", "small.policy_kwargs={net_arch: [32, 16]}"], ["render_mode=rgb_array"]),
        *(["-7,-6", "Pendulum-v1:-200"],),
        **{"seeds": 2, "first_seed": 5, "eval_every": 100},
    )
    names = [(task, name) for task in ("Reacher-v5", "Pendulum-v1") for name in ("trpo", "ppo", "small")]
    assert [(config.seed, config.env_id, config.name) for config in configs] == [
        (seed, *name) for seed in (5, 6) for name in names
    ]
    assert [config.n_timesteps for config in configs[:3]] == [2000, 3000, 2000]
    assert configs[2].hyperparams["learning_rate"] == 1e-3 and configs[2].hyperparams["policy_kwargs"] == {
        "net_arch": [32, 16]
    }
    assert configs[2].source == "RL Zoo, Reacher-v2, learning_rate=0.001, policy_kwargs={'net_arch': [32, 16]}"
    assert configs[1].source == "RL Zoo, Reacher-v2" and configs[1].hyperparams["learning_rate"] != 1e-3
    assert configs[0].env_kwargs == {"render_mode": "rgb_array"}
    assert (configs[0].eval_every, configs[0].n_eval_episodes) == (100, 10)
    assert _configs(["ppo"], ["Reacher-v5"])[0].n_timesteps == 1_000_000 and len(_configs(["ppo"], ["Reacher-v5"])) == 3


def test_thresholds_on_the_command_line() -> None:
    suite = suite_from_arguments(["ppo"], ["Reacher-v5", "Pendulum-v1"], thresholds=["-7,-6", "Pendulum-v1:-200"])
    assert [task.thresholds for task in suite.tasks.values()] == [(-7, -6), (-7, -6, -200)]
    assert suite_from_arguments(["ppo"], ["Reacher-v5"]).tasks["Reacher-v5"].thresholds == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algos": []}, "algorithms: Dictionary should have at least 1 item"),
        ({"envs": [","]}, "tasks: Dictionary should have at least 1 item"),
        ({"algos": ["pppo"]}, "algorithms.pppo: Unknown algorithm 'pppo'"),
        ({"algos": ["my/ppo=ppo"]}, "algorithms.my/ppo: a name has letters"),
        ({"algos": ["ppo", "ppo"]}, "algorithms: 'ppo' stands there twice"),
        ({"steps": ["trpo:100"]}, "steps.trpo: no algorithm of the suite, choose one of: ppo"),
        (
            {"steps": ["ppo:abc"]},
            "steps.ppo: Input should be a valid integer, unable to parse string as an integer, not 'abc'",
        ),
        ({"overrides": ["gamma=0"]}, "--set gamma=0: write LABEL.KEY=VALUE"),
        ({"overrides": ["ppo.gama=0.9"]}, "set.ppo.gama: PPO takes no such hyperparameter, did you mean 'gamma'"),
        ({"overrides": ["ppo.gamma=[1"]}, "--set ppo.gamma=[1: [1: not valid YAML"),
        ({"env_kwargs": ["g"]}, "--env-kwargs g: write KEY=VALUE"),
        ({"envs": ["Pendulum-v1"], "env_kwargs": ["gg=1"]}, "env_kwargs.gg: Pendulum-v1 takes no such argument"),
        ({"thresholds": ["high"]}, "thresholds[0]: Input should be a valid number"),
        ({"thresholds": ["Hopper-v5:3"]}, "--threshold Hopper-v5:3: 'Hopper-v5' is not among Reacher-v5"),
        ({"eval_every": -1}, "evaluation.every: Input should be greater than 0, not -1"),
    ],
)
def test_what_is_wrong_on_the_command_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(message)):
        suite_from_arguments(**{"algos": ["ppo"], "envs": ["Reacher-v5"], **arguments})


def test_a_changed_suite_is_checked_too() -> None:
    changed = load_suite("mujoco", seeds=7, eval_every=100)
    assert (changed.seeds, changed.evaluation.every, changed.evaluation.episodes) == (7, 100, 10)
    with pytest.raises(SuiteError, match="first_seed: Input should be greater than 0, not 0"):
        load_suite("mujoco", first_seed=0)


def test_hyperparameters_that_make_no_sense_are_found_before_any_run() -> None:
    suite = suite_from_arguments(["ppo"], ["Reacher-v5"], overrides=["ppo.policy_kwargs=dict(activation_fn=nn.Relu)"])
    with pytest.raises(SuiteError, match=r"ppo on Reacher-v5: .*Relu.*\(hyperparameters of RL Zoo, Reacher-v2\)"):
        make_configs(suite)
    with pytest.raises(SuiteError, match="neither the task's steps nor n_timesteps tell the budget"):
        make_configs(suite_from_arguments(["ppo"], ["Reacher-v5"], overrides=["ppo.n_timesteps=null"]))


def test_two_runs_never_share_a_folder(load: Callable[..., Suite], tmp_path: Path) -> None:
    content = _suite(algorithms={"ppo": {}, "x": {"algo": "ppo"}}, tasks={"Reacher-v5": {}, "x": {"env": "Reacher-v5"}})
    said = r"x on Reacher-v5, seed 1; ppo on x, seed 1: two different runs have the folder x/ppo/Reacher-v5_1\. Give variants"
    with pytest.raises(ValueError, match=said):
        run_all(make_configs(load(content)), Store(tmp_path), NoEngine())


def test_algorithms_of_other_modules(third_party: str, load: Callable[..., Suite]) -> None:
    name = f"{third_party}:Mine"
    found = algorithm_class(name)
    assert found.__name__ == "Mine"
    choice = resolve_hyperparams(name, "Reacher-v5")
    assert choice.hyperparams == SB3_DEFAULTS and choice.source == "SB3 defaults, observations normalized"
    (config,) = _configs([name], ["Reacher-v5"], ["1e3"], ["mine.anything=1"], seeds=1)
    assert (config.algo, config.name, config.label, config.path) == (name, "mine", "", "mine/Reacher-v5_1")
    (config,) = make_configs(load(_suite(algorithms={"theirs": {"algo": name}}, seeds=1)))
    assert (config.label, config.path) == ("theirs", "theirs/mine/Reacher-v5_1")
    with pytest.raises(SuiteError, match="Strict takes no such hyperparameter, did you mean 'my_option'"):
        _configs([f"strict={third_party}:Strict"], ["Reacher-v5"], [], ["strict.my_optoin=1"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("third_party_algorithms:Mien", r"the module 'third_party_algorithms' has no class 'Mien'; did you mean 'Mine'"),
        ("third_party_algorithms:Xyz", r"has no class 'Xyz'; it has PPO, Mine, Strict"),
        ("third_party_algorithms:Other", "has 'Other', but it is no subclass of BaseAlgorithm"),
        ("third_party_algorithms:BaseAlgorithm", "is no subclass of BaseAlgorithm"),
        ("no_such_module:Mine", r"cannot be imported: ModuleNotFoundError: No module named 'no_such_module'; install it"),
        ("broken_algorithms:Mine", r"imported: ModuleNotFoundError: No module named 'no_such_module_anywhere' \(broken"),
        (":Mine", "the module '' cannot be imported"),
        ("third_party_algorithms:_", "has no class '_'"),
    ],
)
def test_modules_without_such_an_algorithm(third_party: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm_class(name)
    with pytest.raises(SuiteError, match="Unknown algorithm"):
        suite_from_arguments([name], ["Reacher-v5"])


def test_unknown_algorithms_get_the_closest_names() -> None:
    for name, expected in (("PPO", "'ppo'"), ("mdpgs", "'mdgps'"), ("crosq", "'crossq'"), ("ppo-lstm", "'ppo_lstm'")):
        with pytest.raises(ValueError, match=f"did you mean {expected}") as caught:
            algorithm_class(name)
        assert f"Unknown algorithm {name!r}, choose one of: a2c" in str(caught.value)
        with pytest.raises(ValueError, match=f"did you mean {expected}"):
            resolve_hyperparams(name, "Reacher-v5")
    with pytest.raises(ValueError, match=r"or module:Class for one of your own$"):
        algorithm_class("zzzzzz")
    for name in ("logger", "herreplaybuffer", "get_system_info"):
        with pytest.raises(ValueError, match="Unknown algorithm"):
            algorithm_class(name)


def test_names_of_rl_zoo_are_those_of_the_algorithms() -> None:
    assert algorithm_class("ppo_lstm").__name__ == "RecurrentPPO"
    assert resolve_hyperparams("ppo_lstm", "Pendulum-v1").hyperparams["policy"] == "MlpLstmPolicy"
    assert resolve_hyperparams("maskableppo", "Pendulum-v1").source.startswith("SB3 defaults")


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [("seed", 1, "did you mean 'seeds'?"), ("seed", 2, "did you mean 'seeds' or 'sEEds2'?"), ("q", 3, "")],
)
def test_closest_names(name: str, n: int, expected: str) -> None:
    assert closest(name, ["seeds", "sEEds2", "name"], n) == expected


def test_tasks_are_kept_beside_those_of_other_suites(tmp_path: Path, load: Callable[..., Suite]) -> None:
    out = tmp_path / "out"
    assert read_tasks(out) == {}
    write_tasks(out, load(FULL).tasks)
    assert read_tasks(out) == {
        "Pendulum-v1": Task(env="Pendulum-v1", thresholds=(-300, -200), scale=(-1200, -200)),
        "long_pole": Task(env=CARTPOLE, thresholds=(-6,)),
        "Reacher-v5": Task(env="Reacher-v5"),
    }
    write_tasks(out, suite_from_arguments(["ppo"], ["Pendulum-v1", "Hopper-v5"], thresholds=["Hopper-v5:2000"]).tasks)
    write_tasks(out, load(_task(threshold=-6, scale=[-43, -6])).tasks)
    tasks = read_tasks(out)
    assert tasks["Pendulum-v1"].thresholds == (-300, -200) and tasks["Pendulum-v1"].scale == (-1200, -200)
    assert tasks["Hopper-v5"].thresholds == (2000,) and tasks["Hopper-v5"].scale is None
    assert tasks["Reacher-v5"].thresholds == (-6,) and tasks["Reacher-v5"].scale == (-43, -6)
    assert list(tasks) == sorted(tasks) and "long_pole" in tasks
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["tasks.yml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", r"tasks\.yml, line 1: not valid YAML"),
        ("Reacher-v5: {thresholds: high}", r"tasks\.yml: Reacher-v5\.thresholds: Input should be a valid tuple, not 'high'"),
        ("- 1", r"tasks\.yml: Input should be a valid dictionary, not \[1\]"),
    ],
)
def test_unreadable_tasks_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tasks.yml").write_text(content)
    with pytest.raises(SuiteError, match=message):
        read_tasks(tmp_path)
    with pytest.raises(SuiteError, match=message):
        write_tasks(tmp_path, {"Reacher-v5": Task(env="Reacher-v5")})
    assert (tmp_path / "tasks.yml").read_text() == content


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([((3000,), None), ((1000,), (-268, 1000)), ((1000, 3000), (-268, 3000))], ((3000,), (-268, 3000))),
        ([((3000,), None), ((1000,), (-268, 1000))], ((3000,), None)),
        ([((), None), ((1000,), (-268, 1000))], ((1000,), (-268, 1000))),
        ([((), (0, 9)), ((5,), (0, 5)), ((9,), None)], ((9,), (0, 9))),
        ([((5,), (0, 9)), ((9,), (0, 5))], ((5,), (0, 9))),
    ],
)
def test_a_scale_belongs_to_its_threshold(tasks: list[Any], expected: Any) -> None:
    told = [("A-v0", Task(env="A-v0", thresholds=thresholds, scale=scale)) for thresholds, scale in tasks]
    assert merged(told) == {"A-v0": Task(env="A-v0", thresholds=expected[0], scale=expected[1])}
