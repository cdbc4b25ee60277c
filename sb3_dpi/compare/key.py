"""What identifies a run: two runs with the same key are the same run, and the second one need not be done.

The key covers the resolved configuration with its seed, the versions of the algorithm's own distribution, of Gymnasium and
of MuJoCo and, for an algorithm of this package, its ``algorithm_version``. ``configuration_key`` leaves the versions out:
results that came from elsewhere are matched by it, and the other versions are compared in words.
"""

import json
import subprocess
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from platform import machine, python_version, system
from typing import Any

from sb3_dpi.common.saved_models import SavedModel
from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo import algorithm_class

PACKAGE = Path(__file__).parents[1]
ALGORITHM_VERSION = "algorithm_version"
"""Among the versions of a run: what its algorithm said of itself"""
RECORDED = ("sb3_dpi", "stable_baselines3", "sb3_contrib", "gymnasium", "mujoco", "torch", "numpy", "numba")


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def _distributions() -> Any:
    return packages_distributions()


@cache
def run_versions(algo: str) -> dict[str, str]:
    """
    Find the versions that the key of a run covers.

    :return: From distribution to version: the algorithm's own, gymnasium, mujoco; for one outside any distribution the hash of
        its module's file under the module's name. Of this package, and for what is derived from it, ``algorithm_version``
    """
    found = {name: installed for name in ("gymnasium", "mujoco") if (installed := _installed(name)) is not None}
    algorithm = algorithm_class(algo)
    if issubclass(algorithm, SavedModel):
        found[ALGORITHM_VERSION] = str(algorithm.algorithm_version)
    module = algorithm.__module__
    package = module.partition(".")[0]
    if package == "sb3_dpi":
        return found
    for name in _distributions().get(package, []):
        return {**found, name.lower().replace("-", "_"): version(name)}
    import sys

    path = getattr(sys.modules[module], "__file__", None)
    return {**found, module: sha256(Path(path).read_bytes()).hexdigest() if path else "unknown"}


def _content(config: RunConfig) -> dict[str, Any]:
    content = config.to_dict()
    # Names and words, not settings; the budget is n_timesteps of the configuration
    for key in ("source", "label", "task"):
        del content[key]
    content["hyperparams"] = {key: value for key, value in config.hyperparams.items() if key != "n_timesteps"}
    return content


def configuration_key(config: RunConfig) -> str:
    """Identify the configuration of a run, seed included, whatever the versions."""
    return _digest(_content(config))


def run_key(config: RunConfig, versions: dict[str, str] | None = None) -> str:
    """Identify a run: its configuration and the versions that its result depends on, by default those of this installation."""
    return _digest({**_content(config), "versions": run_versions(config.algo) if versions is None else versions})


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def provenance() -> dict[str, Any]:
    """Describe the installation: Python, platform, packages, and the git commit of this package where it is a checkout."""
    found: dict[str, Any] = {"python": python_version(), "platform": f"{system()} {machine()}"}
    found["packages"] = {name: installed for name in RECORDED if (installed := _installed(name)) is not None}
    tracked = _git("ls-files", "--error-unmatch", str(PACKAGE / "version.txt"))
    if tracked is not None:
        found["git"] = {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain", "-uno"))}
    return found
