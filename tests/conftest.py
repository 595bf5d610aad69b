"""Options, backends and settings shared by all tests."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests.backends import Backend

# Keras asks for a TensorFlow unless it is told otherwise before it is imported.
os.environ.setdefault("KERAS_BACKEND", "jax")

# Machines differ in speed and a test run must mean the same everywhere: no deadlines, the same examples each time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --run-slow"))


@pytest.fixture(
    params=[
        pytest.param(b, id=b.value, marks=[pytest.mark.gpu] if b is Backend.CUPY else []) for b in Backend
    ]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every array library in turn; those that are not here are skipped with the reason."""
    chosen: Backend = request.param
    if chosen.missing is not None:
        pytest.skip(chosen.missing)
    if chosen is Backend.CUPY:
        # What is held against another library is float32 there too.
        request.getfixturevalue("monkeypatch").setenv("CUPY_TF32", "0")
    return chosen
