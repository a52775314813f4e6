"""The kill trial reaches the number of kills asked for, or fails; a quick process stands in for `prepare`."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from benchmarks.prepare_killed import kill_again_and_again


def beginner(seconds: float, text: str = "rows"):
    """Return a function that starts a process which takes so long to make a folder with a file."""

    def begin(raw: Path, target: Path) -> subprocess.Popen[bytes]:
        script = f'sleep {seconds}; mkdir -p "$0.new"; echo {text} > "$0.new/a"; rm -rf "$0"; mv "$0.new" "$0"'
        return subprocess.Popen(["bash", "-c", script, str(target)])

    return begin


@pytest.fixture
def whole(tmp_path):
    beginner(0)(tmp_path, tmp_path / "whole").wait()
    return tmp_path / "whole"


def test_a_run_that_ends_too_soon_is_begun_anew(tmp_path, whole, capsys):
    kill_again_and_again(beginner(0.3), tmp_path, whole, tmp_path / "data", 3, 4.0, random.Random(1))
    lines = capsys.readouterr().out.splitlines()
    assert "it ended when it had been killed 0 times of 3: begun anew, killed sooner" in lines
    assert lines[-1] == "killed 3 times in all"
    assert lines[-2].startswith("equal: all 1 files")


def test_too_few_kills_fail(tmp_path, whole):
    with pytest.raises(SystemExit, match="killed 0 times, not 3: it ended too soon; prepare more --rows"):
        kill_again_and_again(beginner(0), tmp_path, whole, tmp_path / "data", 3, 80.0, random.Random(1))


def test_another_result_fails(tmp_path, whole):
    with pytest.raises(SystemExit, match="different: a"):
        kill_again_and_again(beginner(0, "other"), tmp_path, whole, tmp_path / "data", 3, 80.0, random.Random(1))
