"""Shared by all tests."""

import re
from functools import wraps
from typing import Any

import dummy_envs
import pytest
import torch as th


@pytest.fixture(scope="session", autouse=True)
def _session() -> None:
    th.set_num_threads(1)
    dummy_envs.register()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Leave addresses out of names: processes that share the tests have to give them the same."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        ids = mark.kwargs.get("ids")
        if callable(ids) and not hasattr(ids, "__wrapped__"):

            @wraps(ids)
            def without_addresses(value: Any, ids: Any = ids) -> str:
                return re.sub(r" at 0x[0-9a-f]+", "", str(ids(value)))

            mark.kwargs["ids"] = without_addresses
