"""Trials run one after the other, each in a process that takes its memory, and its end, with it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tfdlrm.distribute.processes import TaskProcess, end_all
from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.pipelines.sweeping.spending import spent_by
from tfdlrm.spec.errors import ConfigError
from tfdlrm.tuning.results import Proposal, TrialResult, rows_seen
from tfdlrm.tuning.sweep_config import SweepConfig

_LOOK = 0.05
_PATIENCE = 5.0
"""Seconds that a process has to end in when it is asked to."""


class TrialRunner:
    """Runs a trial that KerasTuner proposes.

    Args:
        folder: The sweep's.
        worker: The name of this process.
        ended: Called with every trial that has ended here.
    """

    def __init__(self, folder: SweepFolder, worker: str, ended: Callable[[TrialResult], None]) -> None:
        self._folder, self._worker, self._ended = folder, worker, ended

    def __call__(self, proposal: Proposal) -> TrialResult:
        """Return what came of a trial; one that had ended before is not run again."""
        self._folder.propose(proposal)
        known = self._folder.result(proposal.trial)
        if known is not None:
            return known
        before, started = spent_by(self._folder.trial(proposal.trial)).seconds, time.monotonic()
        log = self._folder.trial(proposal.trial) / "log.txt"
        code, said = 0, ""
        if self._folder.outcome(proposal.trial) is None:
            code, said = run_module("tfdlrm.pipelines.sweeping.trial", log, str(self._folder.root), proposal.trial)
        outcome = self._folder.outcome(proposal.trial)
        if outcome is None:
            spent = spent_by(self._folder.trial(proposal.trial)).seeds
            outcome = TrialResult(**proposal._asdict(), status="failed", reason=_why(code, said, log), spent=spent)
            self._folder.drop_trainings(proposal.trial)
        result = outcome.model_copy(
            update={
                "seconds": before + time.monotonic() - started,
                "worker": self._worker,
                "parent_bytes": resident_bytes(),
            }
        )
        self._folder.note_result(result)
        self._ended(result)
        return result


def check(folder: SweepFolder) -> None:
    """See that every value of the space fits the model, and prepare rows, unless that was done before.

    Raises:
        ConfigError: one does not fit, or rows cannot be prepared.
    """
    if folder.checked_file.is_file():
        return
    log = folder.root / "logs" / "check.txt"
    code, said = run_module("tfdlrm.pipelines.sweeping.check", log, str(folder.root))
    if code:
        raise ConfigError(said if code == 2 else f"the check of the space failed: {_why(code, said, log)}")


def run_module(module: str, log: Path, *arguments: str) -> tuple[int, str]:
    """Run a module to its end and return its exit code and the last line that it wrote; it ends with this process."""
    process = TaskProcess([sys.executable, "-m", module, *arguments], os.environ, log)
    try:
        while process.poll() is None:
            time.sleep(_LOOK)
    finally:
        end_all([process], _PATIENCE)
    lines = log.read_bytes()[process.log_start :].decode(errors="replace").strip().splitlines()
    return process.code or 0, lines[-1].removeprefix("tfdlrm: ") if lines else ""


def is_spent(folder: SweepFolder, config: SweepConfig) -> bool:
    """Return whether the budget of the whole sweep is used up."""
    budget = config.budget
    if budget.rows is None and budget.seconds is None:
        return False
    results = folder.results()
    rows, seconds = rows_seen(results), sum(result.seconds for result in results)
    return (budget.rows is not None and rows >= budget.rows) or (
        budget.seconds is not None and seconds >= budget.seconds
    )


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _why(code: int, said: str, log: Path) -> str:
    if code == -signal.SIGKILL:
        return f"killed by SIGKILL: out of memory, perhaps (log: {log})"
    if code < 0:
        return f"killed by {signal.Signals(-code).name} (log: {log})"
    return f"ended with exit code {code}: {said or 'it said nothing'} (log: {log})"
