"""Shared test helpers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import forking_python
from tests.forks import Forks

# The same examples every time: a change is judged by what it does, not by what was drawn today. To look for new ones:
# pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]


# Files are handed out one by one to the processes that test. Those that take longest go first, or one of them would be
# left to a single process in the end.
LONGEST = (
    "notebooks/",
    "pipelines/test_cluster",
    "models/test_contract",
    "distribute/test_mirrored",
    "pipelines/test_killed",
    "pipelines/test_growth",
    "data/test_prepare_",
    "pipelines/test_criteo",
    "data/test_beam",
    "training/test_trainer",
    "pipelines/",
    "distribute/",
    "export/test_saved_model",
    "data/test_encoder",
    "data/test_dataset",
    "training/",
    "data/test_recipes",
    "serving/",
)


def pytest_configure(config: pytest.Config) -> None:
    """Where TFDLRM_FORKS=1 says so, let commands of the package be forks, in all that test: a fifth less CPU."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what is in the background; inherited by all
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if hands_out or os.environ.get("TFDLRM_FORKS") != "1":
        return
    folder = Path(tempfile.mkdtemp(prefix="tfdlrm-"))
    plain = sys.executable
    process = forking_python.install(folder)

    def leave() -> None:
        sys.executable = plain
        process.communicate()
        shutil.rmtree(folder)

    config.add_cleanup(leave)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        return next((number for number, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture
def shared_data():
    """Return a function from a relative name to a path in the optional shared data folder; skips where absent."""
    folder = Path(os.environ.get("TFDLRM_SHARED_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"optional data not here: {name} (set TFDLRM_SHARED_DATA)")
        return path

    return find


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Return what starts processes that need not import TensorFlow."""
    started = Forks(tmp_path_factory.mktemp("forks"))
    yield started
    started.close()
