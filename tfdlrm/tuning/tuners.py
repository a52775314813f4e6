"""KerasTuner's searches over trials that run elsewhere: a function is given values and returns what came of them.

KerasTuner proposes, keeps its books and talks between processes; models are not its affair, since under this TensorFlow
it takes none of Keras 2. What it writes is made whole here: a sweep may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.errors import FailedTrialError, FatalError
from keras_tuner.oracles import BayesianOptimizationOracle, HyperbandOracle, RandomSearchOracle
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from tfdlrm.tuning.results import Proposal, TrialResult
from tfdlrm.tuning.space import Space
from tfdlrm.tuning.sweep_config import SweepConfig

_FOLDER = "tuner"
_NEVER = 2**31
# Any other trial is better. In Hyperband alone, where scores are only compared: a round with too few scores never ends.
_WORST = {"log_loss": 1e9, "normalized_entropy": 1e9, "auc": -1.0}
_BREATH = 0.05


RunTrial = Callable[[Proposal], TrialResult]
"""Runs a trial, in a process of its own; a trial that fails is a result."""


def search(
    config: SweepConfig,
    space: Space,
    root: Path,
    run_trial: RunTrial,
    is_spent: Callable[[], bool] = lambda: False,
    has_result: Callable[[str], bool] = lambda trial: True,
) -> None:
    """Propose values and have them tried until the trials or the budget are used up; goes on where it was broken off.

    In a process whose environment names a chief (`KERASTUNER_TUNER_ID`, `KERASTUNER_ORACLE_IP`,
    `KERASTUNER_ORACLE_PORT`), it is that chief, which proposes to others, or one of its workers.

    Args:
        config: The sweep.
        space: What varies.
        root: Where KerasTuner keeps its books, in a folder of its own.
        run_trial: Runs a trial.
        is_spent: Whether the budget of the sweep is used up: no trial is proposed then.
        has_result: Whether what came of a trial that ended before is there; else it is run again. Defaults to yes.
    """
    oracle = _oracle(config, space, is_spent)
    oracle.has_result = has_result
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it goes on
        tuner = _Tuner(oracle, config, space, root, run_trial)
    try:
        tuner.search(verbose=0)
    except FatalError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def hyperparameters(space: Space) -> keras_tuner.HyperParameters:
    """Return the space as KerasTuner has it."""
    found = keras_tuner.HyperParameters()
    for key, p in space.parameters.items():
        with ExitStack() as scopes:
            for parent, values in space.conditions(key):
                encoded = [space.parameters[parent].encoded(value) for value in values]
                scopes.enter_context(found.conditional_scope(parent, encoded))
            if p.choice is not None and p.ordered:
                found.Int(key, 0, len(p.choice) - 1)
            elif p.choice is not None:
                found.Choice(key, [p.encoded(value) for value in p.choice])
            else:
                (found.Int if p.whole else found.Float)(key, p.low, p.high, step=p.step, sampling=p.sampling)
    return found


class _Durable:
    """What oracles do otherwise here: begin with the recipe, stop at a budget, write whole files, never give up."""

    def __init__(self, is_spent: Callable[[], bool], first: Mapping[str, Any] | None, **settings: Any) -> None:
        super().__init__(max_consecutive_failed_trials=_NEVER, **settings)  # type: ignore[call-arg]
        self._is_spent, self._first = is_spent, first
        self.has_result: Callable[[str], bool] = lambda trial: True

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the values of the next trial."""
        if self._is_spent():
            return {"status": TrialStatus.STOPPED}
        if not self.trials and self._first is not None:  # type: ignore[attr-defined]
            return {"status": TrialStatus.RUNNING, "values": dict(self._first)}
        proposed: dict[str, Any] = super().populate_space(trial_id)  # type: ignore[misc]
        return proposed

    def save(self) -> None:
        """Write all but the trials."""
        _write(self._get_oracle_fname(), self.get_state())  # type: ignore[attr-defined]

    def _save_trial(self, trial: Trial) -> None:
        folder = self._get_trial_dir(trial.trial_id)  # type: ignore[attr-defined]
        _write(os.path.join(folder, "trial.json"), trial.get_state())

    def reload(self) -> None:
        """Read everything; trials that had begun, or whose results are gone, and those alone, are handed out again."""
        super().reload()  # type: ignore[misc]
        trials: dict[str, Trial] = self.trials  # type: ignore[attr-defined]
        begun = [
            name for name, trial in trials.items() if trial.status == TrialStatus.RUNNING or not self.has_result(name)
        ]
        for name in begun:
            trials[name].metrics.metrics.clear()  # or the old ones would stand
        self._retry_queue = sorted(begun, reverse=True)  # it takes the last one first


class _Random(_Durable, RandomSearchOracle):
    """Random search."""


class _Bayesian(_Durable, BayesianOptimizationOracle):
    """Bayesian optimization by a Gaussian process."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the values of the next trial."""
        # Thousands of products of tiny matrices: threads cost three times what they give.
        with threadpool_limits(1):
            return super().populate_space(trial_id)


class _Hyperband(_Durable, HyperbandOracle):
    """Hyperband."""


def _oracle(config: SweepConfig, space: Space, is_spent: Callable[[], bool]) -> keras_tuner.Oracle:
    settings: dict[str, Any] = {
        "objective": keras_tuner.Objective(config.objective, config.direction),
        "hyperparameters": hyperparameters(space),
        # What comes back over the network is rounded, and must not be taken for something new.
        "tune_new_entries": False,
        "seed": config.seed,
        "is_spent": is_spent,
    }
    if config.algorithm == "hyperband":
        own = config.hyperband
        settings |= {"max_epochs": own.shares, "factor": own.factor, "hyperband_iterations": own.iterations}
        oracle = _Hyperband(first=None, **settings)
        oracle.max_trials = config.most_trials
        return oracle
    values = space.of_base() if config.recipe_first else None
    settings |= {"first": None if values is None else space.encode(values), "max_trials": config.most_trials}
    if config.algorithm == "random":
        return _Random(**settings)
    points = config.initial_points or max(3, -(-(config.most_trials or 0) // 3))
    return _Bayesian(num_initial_points=points, **settings)


class _Tuner(BaseTuner):
    """Hands the proposals of an oracle, here or in another process, to a function."""

    def __init__(
        self, oracle: keras_tuner.Oracle, config: SweepConfig, space: Space, root: Path, run_trial: RunTrial
    ) -> None:
        self._config, self._space, self._run = config, space, run_trial
        super().__init__(oracle=oracle, directory=str(root), project_name=_FOLDER)

    def run_trial(self, trial: Trial, *args: Any, **settings: Any) -> dict[str, float]:
        """Return the objective of a trial; what is handed on from `search` besides says nothing here.

        Raises:
            FailedTrialError: it has none.
        """
        values = trial.hyperparameters.values
        shares = self._config.hyperband.shares
        proposal = Proposal(
            trial.trial_id,
            self._space.decode(values),
            min(1.0, values.get("tuner/epochs", shares) / shares),
            values.get("tuner/trial_id"),
        )
        try:
            result = self._run(proposal)
        except Exception as error:  # ours, not the trial's
            raise FatalError(str(error)) from error
        objective = self._config.objective
        value = result.mean(objective)
        if value is None and self._config.algorithm == "hyperband":
            value = _WORST[objective]
        if value is None:
            raise FailedTrialError(result.reason)
        return {objective: value}

    def _try_run_and_update_trial(self, trial: Trial, *args: Any, **settings: Any) -> None:
        # Its own prints a traceback of each trial that fails, among the lines of the command.
        try:
            self._run_and_update_trial(trial, *args, **settings)
            trial.status = TrialStatus.COMPLETED
        except FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)

    def pre_create_trial(self) -> None:
        """Wait a little: a chief that has nothing to hand out yet is asked again at once."""
        time.sleep(_BREATH)

    def save(self) -> None:
        """Write the books, unless they are the chief's."""
        if not self._is_worker():
            self.oracle.save()

    def reload(self) -> None:
        """Read the books, unless they are the chief's."""
        if not self._is_worker():
            self.oracle.reload()

    def _get_tuner_fname(self) -> str:
        # There is nothing to keep of a tuner itself; whether there is something to go on from, the oracle's file says.
        return os.path.join(self.project_dir, "oracle.json")


def _write(path: str, state: Mapping[str, Any]) -> None:
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.replace(temporary, path)
