"""KerasTuner's searches with trials that are a formula: what is proposed, failures, and going on."""

from __future__ import annotations

import contextlib
import json
import os

import pytest

from tfdlrm.spec.config import RunConfig
from tfdlrm.tuning import tuners
from tfdlrm.tuning.results import SeedResult, TrialResult
from tfdlrm.tuning.space import Space
from tfdlrm.tuning.sweep_config import sweep_config

RATE, DROPOUT, NAME, LAYERS = "train.embedding.learning_rate", "model.dropout", "model.name", "model.cross_layers"
SPACE = {
    RATE: {"low": 0.001, "high": 1.0, "sampling": "log"},
    DROPOUT: {"choice": [0.0, 0.1, 0.2]},
    NAME: {"choice": ["dlrm", "dcn_v2"]},
    LAYERS: {"low": 1, "high": 4, "when": {NAME: ["dcn_v2"]}},
}


class Trials:
    """Trials that are a formula of their values; remembers what was asked for."""

    def __init__(self, fails=lambda proposal: False, ends=None):
        self.asked, self.fails, self.ends = [], fails, ends

    def __call__(self, proposal):
        if len(self.asked) == self.ends:
            raise KeyboardInterrupt
        self.asked.append(proposal)
        if self.fails(proposal):
            return TrialResult(trial=proposal.trial, status="failed", reason="no luck")
        rate = proposal.values[RATE]
        loss = 0.4 + abs(rate - 0.03) + proposal.values.get(DROPOUT, 0) + 0.1 * (1 - proposal.share)
        metrics = {"log_loss": loss, "auc": 1 - loss, "normalized_entropy": loss}
        seed = SeedResult(seed=0, metrics=metrics, rows=1, steps=1, seconds=1.0)
        return TrialResult(trial=proposal.trial, status="completed", seeds=(seed,))


def search(folder, formula, is_spent=lambda: False, **settings):
    config = sweep_config({"space": SPACE, **settings})
    tuners.search(config, Space(config.space, RunConfig()), folder, formula, is_spent)


def run(folder, formula, is_spent=lambda: False, **settings):
    search(folder, formula, is_spent, **settings)
    return [proposal.values for proposal in formula.asked]


@pytest.mark.parametrize(("algorithm", "count"), [("random", 8), ("bayesian", 4)])
def test_proposals_lie_in_the_space(tmp_path, algorithm, count):
    values = run(tmp_path, Trials(), algorithm=algorithm, trials=count, initial_points=3)
    assert len(values) == count
    # The recipe's own values come first.
    assert values[0] == {RATE: 0.1, DROPOUT: 0.0, NAME: "dlrm"}
    for own in values:
        assert 0.001 <= own[RATE] <= 1.0 and own[DROPOUT] in (0.0, 0.1, 0.2)
        assert (LAYERS in own) == (own[NAME] == "dcn_v2")
        assert own.get(LAYERS, 1) in range(1, 5)
    assert len({json.dumps(own) for own in values}) == count
    assert {own[NAME] for own in values} == {"dlrm", "dcn_v2"}
    # Equal seeds, equal proposals.
    assert run(tmp_path / "again", Trials(), algorithm=algorithm, trials=count, initial_points=3) == values


def test_failures_are_survived_and_never_given_up_for(tmp_path, capfd):
    trials = Trials(fails=lambda proposal: True)
    assert len(run(tmp_path, trials, algorithm="random", trials=6)) == 6
    assert len({proposal.trial for proposal in trials.asked}) == 6
    # Their lines are the command's affair.
    assert "Traceback" not in "".join(capfd.readouterr())


def test_faults_of_our_own_are_not_failures_of_a_trial(tmp_path):
    def broken(proposal):
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        search(tmp_path, broken, algorithm="random")


def test_hyperband_halves(tmp_path):
    trials = Trials(fails=lambda proposal: proposal.trial == "0001")
    run(tmp_path, trials, algorithm="hyperband", hyperband={"shares": 4, "factor": 2})
    by_name = {proposal.trial: proposal for proposal in trials.asked}
    assert {proposal.share for proposal in trials.asked} == {0.25, 0.5, 1.0}
    later = [proposal for proposal in trials.asked if proposal.goes_on_from]
    assert later
    for proposal in later:
        before = by_name[proposal.goes_on_from]
        assert before.values == proposal.values
        assert before.share < proposal.share
    assert not any(proposal.goes_on_from == "0001" for proposal in later)


def test_hyperband_is_bounded(tmp_path):
    trials = Trials()
    run(tmp_path, trials, algorithm="hyperband", trials=3)
    assert len(trials.asked) == 3


def test_a_spent_budget_ends_it(tmp_path):
    trials = Trials()
    run(tmp_path, trials, is_spent=lambda: len(trials.asked) >= 2, algorithm="random", trials=9)
    assert len(trials.asked) == 2


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "hyperband"])
def test_it_goes_on(tmp_path, algorithm):
    settings = {"algorithm": algorithm, "initial_points": 5}
    whole = Trials()
    run(tmp_path / "whole", whole, **settings, trials=5)
    first = Trials(ends=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", first, **settings, trials=5)
    second = Trials()
    run(tmp_path / "cut", second, **settings, trials=5)
    # The trial that had begun is handed out again, and none that had ended.
    assert [proposal.trial for proposal in first.asked + second.asked] == [proposal.trial for proposal in whole.asked]
    if algorithm == "random":
        assert first.asked + second.asked == whole.asked


def test_more_trials_than_at_first(tmp_path):
    run(tmp_path, Trials(), algorithm="random", trials=3)
    more = Trials()
    run(tmp_path, more, algorithm="random", trials=5)
    assert [proposal.trial for proposal in more.asked] == ["3", "4"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_whose_result_is_gone_is_run_again(tmp_path, fails):
    run(tmp_path, Trials(fails=lambda proposal: fails), algorithm="random", trials=3)
    again = Trials()
    config = sweep_config({"space": SPACE, "algorithm": "random", "trials": 3})
    space = Space(config.space, RunConfig())
    tuners.search(config, space, tmp_path, again, has_result=lambda trial: trial != "1")
    assert [proposal.trial for proposal in again.asked] == ["1"]


def test_it_goes_on_from_any_file(tmp_path, monkeypatch):
    """Killed before any of the files that it writes, it runs every trial that has not ended, and no other."""
    replace = os.replace
    for last in range(1, 12):
        folder, count = tmp_path / str(last), [0]

        def killed(source, target, count=count, last=last):
            count[0] += 1
            if count[0] == last:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            run(folder, Trials(), algorithm="random", trials=3)
        monkeypatch.setattr(os, "replace", replace)
        run(folder, Trials(), algorithm="random", trials=3)
        books = [json.loads(path.read_text()) for path in sorted((folder / "tuner").glob("trial_*/trial.json"))]
        assert [book["trial_id"] for book in books] == ["0", "1", "2"], last
        assert {book["status"] for book in books} == {"COMPLETED"}, last
