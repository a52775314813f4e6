"""What a trial has spent, by processes that end in the middle."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.pipelines.sweeping.runner import TrialRunner
from tfdlrm.pipelines.sweeping.spending import Meter, spent_by
from tfdlrm.pipelines.sweeping.trial import _copy
from tfdlrm.spec.errors import DataError
from tfdlrm.tuning.results import Proposal, Spent, TrialResult


def train(folder: Path, *seen: int, seed: int = 1, before: Spent | None = None, seconds: float = 0.0) -> float:
    """Train in a process that ends by an error; return the seconds that it was told had been spent before."""
    with pytest.raises(KeyboardInterrupt), Meter(folder) as meter, meter.training(seed, before) as spent:
        with meter.console(folder / "log.txt").bars() as bar:
            advance = bar("train", 1000)
            for rows in seen:
                advance(rows)
        time.sleep(seconds)
        raise KeyboardInterrupt
    return spent


def test_rows_that_are_seen_again_count_once(tmp_path: Path) -> None:
    assert train(tmp_path, 0, 64, 64, seconds=0.1) == 0
    # From a checkpoint of 64, and not as far; then farther.
    assert train(tmp_path, 64) >= 0.1
    assert spent_by(tmp_path).seeds[0].rows == 128
    train(tmp_path, 64, 100)
    train(tmp_path, 0, 10, seed=2)
    found = spent_by(tmp_path)
    assert [(own.seed, own.rows, own.rows_before) for own in found.seeds] == [(1, 164, 0), (2, 10, 0)]
    assert found.seconds >= found.seeds[0].seconds + found.seeds[1].seconds


def test_seconds_of_the_training_that_it_goes_on_with_count(tmp_path: Path) -> None:
    before = Spent(seed=1, rows=100, seconds=7.0)
    assert train(tmp_path, 100, 64, before=before) == 7.0
    assert train(tmp_path, 164, 64, before=before) > 7.0
    (own,) = spent_by(tmp_path).seeds
    assert (own.rows, own.rows_before) == (228, 100) and 7.0 < own.seconds < 8.0
    # What another trial spent is not spent again.
    assert spent_by(tmp_path).seconds < 1.0


def test_it_is_noted_as_it_goes(tmp_path: Path) -> None:
    with Meter(tmp_path) as meter, meter.training(1, None):
        with meter.console(tmp_path / "log.txt").bars() as bar:
            bar("train", 1000)(64)
        deadline = time.monotonic() + 5
        while not any(own.rows == 64 for own in spent_by(tmp_path).seeds):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text("{")
    with pytest.raises(DataError, match="spent.json"):
        spent_by(tmp_path)


def test_a_trial_that_ended_while_it_tidied_up_has_ended(tmp_path: Path) -> None:
    """Killed after the outcome was written, it is not run again, and its seconds are not lost."""
    folder, told = SweepFolder(tmp_path), []
    proposal = Proposal("0", {"train.epochs": 1})
    folder.propose(proposal)
    train(folder.trial("0"), 64, seconds=0.2)
    folder.note_outcome(TrialResult(**proposal._asdict(), status="completed", spent=spent_by(folder.trial("0")).seeds))
    result = TrialRunner(folder, "tuner0", told.append)(proposal)
    assert result.status == "completed" and result.rows == 64 and result.seconds >= 0.2
    assert told == [result] and not (folder.trial("0") / "log.txt").exists()


def test_a_copy_is_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "own" / "checkpoints"
    (source / "step-3").mkdir(parents=True)
    (source / "step-3" / "weights").write_text("3")
    # What a process that was killed had copied.
    (tmp_path / "own" / "checkpoints.copy" / "step-9").mkdir(parents=True)
    _copy(source, target)
    assert [path.name for path in target.iterdir()] == ["step-3"]
    assert [path.name for path in target.parent.iterdir()] == ["checkpoints"]
