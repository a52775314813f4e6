"""Recipes small enough to run whole in a test, and commands called as from a shell."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from tfdlrm.pipelines import criteo

TINY: dict[str, Any] = {
    "name": "rows",
    "data": {
        "planted": {"rows": 3000},
        "dense": [{"name": "I1"}, {"name": "I2"}],
        "sparse": [{"name": "C1"}, {"name": "C2"}],
        "rows_per_block": 256,
    },
    "model": {"embedding_dim": 4, "bottom_units": [8, 4], "top_units": [16, 1]},
    "train": {"batch_size": 64},
}
"""A recipe of few rows and features, for commands that train it many times."""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def call(main: Callable[[list[str]], int], *argv: Any) -> Outcome:
    """Call a command's `main` and return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in argv])
    return Outcome(code, out.getvalue(), err.getvalue())


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Write a recipe: 6,000 planted rows and a tiny network, sections replaced key by key."""
    recipe: dict[str, Any] = {
        "name": "small",
        "data": {"planted": {"rows": 6000}, "coding": {"min_count": 5}, "rows_per_block": 256},
        "model": {"embedding_dim": 4, "bottom_units": [8, 4], "top_units": [8, 1]},
        "train": {
            "batch_size": 128,
            "epochs": 2,
            "embedding": {"name": "rowwise_adagrad", "learning_rate": 0.05},
            "dense": {"name": "adam", "learning_rate": 0.003},
        },
        # What tests of the page look at; seconds of every other run.
        "report": {"importance_rows": 0, "slice_rows": 0, "tensorboard": False},
        "export": {"directory": str(folder / "models"), "verify_rows": 300},
    }
    for name, values in sections.items():
        recipe[name] = {**recipe.get(name, {}), **values}
    path = folder / "small.toml"
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    return path


def refusal(*argv: Any, main: Callable[[list[str]], int] = criteo.main) -> str:
    """Call a command that must end with exit code 2 and one line; return the line."""
    outcome = call(main, *argv)
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("tfdlrm: ")
    return lines[0].removeprefix("tfdlrm: ")
