"""Shared by all tests."""

import dummy_envs
import pytest
import torch as th


@pytest.fixture(scope="session", autouse=True)
def _session() -> None:
    th.set_num_threads(1)
    dummy_envs.register()
